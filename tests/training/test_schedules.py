"""Schedules: the numbers of weights at each step, what goes and what comes."""

import functools

import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.results import MethodError


@pytest.fixture(autouse=True)
def promotion():
    """Optimisers promote dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def trained(schedule, steps=loops.STEPS):
    params, loss = loops.problem()
    tx = nt.train_sparse(optax.adamw(0.05), schedule, layers=loops.layers())
    return params, tx.init(params), loops.run(tx, params, loss, steps)


def masks(schedule, steps=loops.STEPS):
    """The mask before the first step and after each."""
    _, state, after = trained(schedule, steps)
    return [nt.mask_of(state), *(nt.mask_of(state) for _, state in after)]


PATTERNS = {
    "weights": (nt.Sparsity(0.75), lambda m: (~m).sum(), lambda m: m.size),
    "columns": (
        nt.Sparsity(0.75, scope="column"),
        lambda m: (~m).sum(0),
        lambda m: m.shape[0],
    ),
    "NM": (
        nt.NM(1, 4),
        lambda m: (~m).reshape(-1, 4, m.shape[1]).sum(1).ravel(),
        lambda m: 4,
    ),
    "blocks": (
        nt.Blocks(0.75, (2, 2)),
        lambda m: (~m).reshape(len(m) // 2, 2, -1, 2).any((1, 3)).sum(),
        lambda m: m.size // 4,
    ),
    "neurons": (
        nt.Neurons(0.5),
        lambda m: (~m).all(0).sum(),
        lambda m: m.shape[1],
    ),
    "inputs": (nt.Inputs(0.5), lambda m: (~m).all(1).sum(), lambda m: m.shape[0]),
}


def whole_groups(name, mask):
    """Whether what is off is made of whole blocks, columns or rows."""
    if name == "blocks":
        blocks = mask.reshape(len(mask) // 2, 2, -1, 2)
        return (blocks.all((1, 3)) == blocks.any((1, 3))).all()
    axis = {"neurons": 0, "inputs": 1}.get(name)
    return axis is None or (mask.all(axis) == mask.any(axis)).all()


@slow
@pytest.mark.parametrize("by", ["magnitude", "gradient", "movement"])
@pytest.mark.parametrize("name", PATTERNS)
def test_gradual_has_the_numbers_of_its_formula(name, by):
    pattern, off, of = PATTERNS[name]
    schedule = nt.Gradual(pattern, start=2, end=9, every=3, by=by)
    final = pattern.level if hasattr(pattern, "level") else 0.75
    before = None
    for t, mask in enumerate(masks(schedule)):
        event = min(max(t - (t - 2) % 3, 2), 8) if t < 9 else 9
        level = final * (1 - (1 - (event - 2) / 7) ** 3)
        assert schedule.level_after(t) == pytest.approx(0 if t < 2 else level)
        for key in loops.LAYERS:
            got = np.asarray(mask[key])
            assert (off(got) == round(level * of(got))).all(), (t, key)
            assert whole_groups(name, got)
            assert before is None or not (got & ~np.asarray(before[key])).any()
        before = mask


def test_rounds_remove_the_same_share_of_what_is_left():
    schedule = nt.Rounds(nt.Sparsity(0.875), starts=(0, 4, 8))
    numbers = [loops.zeros(mask) for mask in masks(schedule)]
    want = [[0, 0]] + [
        [round((1 - 0.5**r) * size) for size in loops.SIZES.values()]
        for r in (1, 2, 3)
        for _ in range(4)
    ]
    # the first round is in the first step, the others are after so many
    assert numbers == [*want[:4], *want[5:], want[-1]]


def test_the_network_as_a_whole():
    params, _ = loops.problem()
    params["output"] = 3 * params["output"]
    rounds = nt.Rounds(nt.Sparsity(0.5, scope="network"), starts=(0,))
    tx = nt.train_sparse(optax.sgd(0.0), rounds)
    _, state = loops.once(tx, params, params)
    mask = nt.mask_of(state)
    assert sum(loops.zeros(mask)) == 96 and loops.zeros(mask)[1] < 20
    left = min(float(jnp.abs(params[k][mask[k]]).min()) for k in loops.LAYERS)
    gone = max(float(jnp.abs(params[k][~mask[k]]).max()) for k in loops.LAYERS)
    assert gone <= left


@slow
@pytest.mark.parametrize("pattern", [nt.Sparsity(0.5, scope="network"), nt.NM(1, 4)])
def test_regrowth_under_other_patterns(pattern):
    every = masks(nt.Regrow(pattern, every=2, end=10, share=1.0))
    total = 96 if isinstance(pattern, nt.Sparsity) else 144
    for mask in every:
        assert sum(loops.zeros(mask)) == total
        if isinstance(pattern, nt.NM):
            for key in loops.LAYERS:
                groups = mask[key].reshape(-1, 4, mask[key].shape[1]).sum(1)
                assert (groups == 1).all()
    assert not loops.same(every[1], every[-1])


@pytest.mark.parametrize("by", only_fast(["gradient"], ["gradient", "random"]))
def test_regrowth_drops_the_smallest_and_grows_as_many(by):
    schedule = nt.Regrow(nt.Sparsity(0.75), every=3, end=9, share=0.5, by=by)
    params, first, after = trained(schedule)
    gradient = jax.jit(jax.grad(loops.problem()[1]))
    for key in loops.LAYERS:  # of the largest weights
        size, on = jnp.abs(params[key]), nt.mask_of(first)[key]
        assert size[on].min() >= size[~on].max()
    before, grew = (params, first), 0
    for t, (new, state) in enumerate(after, 1):
        old, mask = nt.mask_of(before[1]), nt.mask_of(state)
        grads = gradient(before[0], t - 1)
        share = 0.25 * (1 + np.cos(np.pi * t / 9)) if t % 3 == 0 and t <= 9 else 0
        for key in loops.LAYERS:
            on, was = np.asarray(mask[key]), np.asarray(old[key])
            assert on.sum() == was.sum() == loops.SIZES[key] // 4
            grown, dropped = on & ~was, was & ~on
            assert grown.sum() == dropped.sum() == round(share * was.sum())
            assert (np.asarray(new[key])[~on] == 0).all()
            if grown.any():
                moments = state.inner[0]
                for a in (new[key], moments.mu[key], moments.nu[key]):
                    assert (np.asarray(a)[grown | dropped] == 0).all()
                    assert (np.asarray(a)[on & was] != 0).any()
                if by == "gradient":
                    size = np.abs(np.asarray(grads[key]))
                    assert size[grown].min() >= size[~was & ~grown].max()
                grew += 1
        before = new, state
    assert grew == 4  # the share is zero at the end


@slow
def test_where_few_are_off_few_are_exchanged():
    """A quarter is off, and half of what is on would go."""
    schedule = nt.Regrow(nt.Sparsity(0.25), every=2, end=10, share=1.0)
    every = masks(schedule)
    for old, new in zip(every[1:], every[2:], strict=False):
        for key in loops.LAYERS:
            assert (~new[key]).sum() == loops.SIZES[key] // 4
            assert (new[key] & ~old[key]).sum() <= loops.SIZES[key] // 4


def test_a_network_that_was_pruned_keeps_its_weights():
    params, loss = loops.problem()
    keep = {key: jnp.abs(params[key]) > 0.3 for key in loops.LAYERS}
    params |= {key: jnp.where(keep[key], params[key], 0) for key in keep}
    left = int(keep["hidden"].sum()), int(keep["output"].sum())
    levels = {
        key: nt.Regrow(nt.Sparsity(1 - k / loops.SIZES[key]), every=2, end=10)
        for key, k in zip(loops.LAYERS, left, strict=True)
    }
    mask = nt.mask_of(nt.train_sparse(optax.sgd(0.1), levels).init(params))
    assert all((mask[key] == keep[key]).all() for key in keep)


def test_a_dense_phase_starts_from_zeros():
    _, _, after = trained(nt.DenseSparseDense(nt.NM(2, 4), sparse=(3, 8)))
    for t, (new, state) in enumerate(after, 1):
        mask = nt.mask_of(state)
        assert loops.zeros(mask) == ([64, 32] if 3 <= t < 8 else [0, 0])
        came = nt.mask_of(after[6][1])
        for key in loops.LAYERS:
            off = ~came[key]
            if t == 8:
                moments = state.inner[0]
                for a in (new[key], moments.mu[key], moments.nu[key]):
                    assert not a[off].any() and a[came[key]].any()
            if t == 9:
                assert new[key][off].any()


@pytest.mark.parametrize("limit", only_fast(["quality"], ["quality", "epsilon"]))
def test_a_threshold(limit):
    value = {"quality": 0.5, "epsilon": 0.2}[limit]
    schedule = nt.Threshold(**{limit: value}, every=3, revive=0.2, scale=1e-3, end=9)
    params, first, after = trained(schedule)
    before, came = (params, first), 0
    for t, (new, state) in enumerate(after, 1):
        old, mask = nt.mask_of(before[1]), nt.mask_of(state)
        for key in loops.LAYERS:
            on, was = np.asarray(mask[key]), np.asarray(old[key])
            W = np.asarray(new[key])
            assert (W[~on] == 0).all()
            if t % 3 or t > 9:
                assert (on == was).all()
                continue
            back = on & ~was
            came += back.sum()
            assert (np.abs(W[back]) < 6e-3).all() and (W[back] != 0).all()
            mu = np.asarray(state.inner[0].mu[key])
            assert (mu[back] == 0).all() and (mu[~on] == 0).all()
            if limit == "epsilon":
                assert np.abs(W[on & was]).min() >= 0.2
        before = new, state
    off = sum(loops.zeros(nt.mask_of(after[-1][1])))
    assert 0 < came < off < sum(loops.SIZES.values())


def test_a_threshold_by_deviations():
    """Without decay or gradients the weights stay, and so does what is expected."""
    params, _ = loops.problem()
    tx = nt.train_sparse(optax.sgd(0.0), nt.Threshold(quality=0.7, every=1, revive=0))
    grads = jax.tree.map(jnp.ones_like, params)
    updates, state = loops.once(tx, grads, params)
    for key in loops.LAYERS:
        W = np.asarray(params[key])
        want = np.abs(W) >= 0.7 * W.std()
        assert (np.asarray(nt.mask_of(state)[key]) == want).all()


def test_scores_are_those_that_they_say():
    params, _ = loops.problem()
    grads = {key: jnp.asarray(a[::-1]) ** 3 for key, a in params.items()}
    scores = {
        "magnitude": lambda w, g: np.abs(w),
        "gradient": lambda w, g: np.abs(w * g),
        "movement": lambda w, g: -w * g,
    }
    for by, score in scores.items():
        rounds = nt.Rounds(nt.Sparsity(0.5), starts=(0,), by=by)
        tx = nt.train_sparse(optax.sgd(0.0), rounds)
        _, state = loops.once(tx, grads, params)
        for key in loops.LAYERS:
            size = score(np.asarray(params[key]), np.asarray(grads[key]))
            on = np.asarray(nt.mask_of(state)[key])
            assert on.sum() == on.size // 2
            assert size[on].min() >= size[~on].max(), by
        assert (state.movement == ()) == (by != "movement")


@slow
def test_a_pattern_of_ones_own():
    class First:
        """The first input of each unit."""

        def check(self, shape):
            pass

        def keep(self, score):
            rows = jnp.arange(score.shape[1])[None, :, None]
            return jnp.broadcast_to(rows == 0, score.shape)

    pattern = First()
    _, _, after = trained(nt.DenseSparseDense(pattern, sparse=(0, 8)))
    assert loops.zeros(nt.mask_of(after[0][1])) == [7 * 16, 15 * 4]
    with pytest.raises(MethodError, match="has no number that could change"):
        nt.Gradual(pattern, end=5)


SPARSE = nt.Sparsity(0.9)
WRONG = {
    "expected a pattern": lambda: nt.Gradual(0.9, end=10),
    "its level is open": lambda: nt.Gradual(nt.Sparsity(), end=10),
    "an end after the start": lambda: nt.Gradual(SPARSE, start=10, end=10),
    r"every=0\): expected a number": lambda: nt.Gradual(SPARSE, end=10, every=0),
    r"end=1.5\): expected a number": lambda: nt.Gradual(SPARSE, end=1.5),
    r"by='size'\): expected one of": lambda: nt.Gradual(SPARSE, end=10, by="size"),
    r"starts=\(\)\): expected numbers": lambda: nt.Rounds(SPARSE, starts=()),
    r"starts=\(3, 3\)\): expected": lambda: nt.Rounds(SPARSE, starts=(3, 3)),
    "expected two numbers": lambda: nt.DenseSparseDense(SPARSE, sparse=(1, 2, 3)),
    r"share=0\): expected a share": lambda: nt.Regrow(SPARSE, end=10, share=0),
    r"Regrow\(by='size'": lambda: nt.Regrow(SPARSE, end=10, by="size"),
    "expected one of the two": lambda: nt.Threshold(every=10),
    r"revive=2\): expected a number": lambda: nt.Threshold(quality=1, revive=2),
    r"scale=-1\): expected a number": lambda: nt.Threshold(quality=1, scale=-1),
}


@pytest.mark.parametrize("message", WRONG)
def test_refusals(message):
    with pytest.raises(MethodError, match=message):
        WRONG[message]()


def test_they_are_records():
    for one in (
        nt.Gradual(SPARSE, end=10),
        nt.Rounds(SPARSE, starts=[0, 5]),
        nt.Regrow(SPARSE, end=10),
        nt.DenseSparseDense(SPARSE, sparse=(1, 2)),
        nt.Threshold(quality=0.5),
    ):
        leaves, tree = jax.tree.flatten(one)
        assert not leaves and jax.tree.unflatten(tree, leaves) == one
        assert len({one, jax.tree.map(lambda a: a, one)}) == 1
