"""``LayerOBS`` against brute force and the naive definition, and its traces."""

import dataclasses

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from jax.test_util import check_grads
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.methods import elimination, support
from nettrim_jax.methods.base import LayerKind
from nettrim_jax.methods.counts import Count
from nettrim_jax.methods.damping import damped
from nettrim_jax.methods.elimination import Floor, Grid
from nettrim_jax.methods.within import Within
from nettrim_jax.results import MethodError, ProgramError, SolveError

DAMPING = 0.02
NONE = Floor(jnp.int32(0), jnp.int32(0))
RUN = jax.jit(lambda rule, W, gram: rule.answer(W, gram))


def problem(d_in=12, d_out=3, lanes=2, seed=0):
    """Weights and second moments of some lanes, with correlated inputs."""
    rng = np.random.default_rng(seed)
    mix = np.eye(d_in) + rng.normal(size=(d_in, d_in)) / (2 * np.sqrt(d_in))
    X = rng.normal(size=(lanes, 4 * d_in, d_in)) @ mix
    return rng.normal(size=(lanes, d_in, d_out)), np.einsum("bni,bnj->bij", X, X)


def with_damping(gram, damping=DAMPING):
    sizes = np.trace(gram, axis1=1, axis2=2) / gram.shape[1]
    return gram + damping * sizes[:, None, None] * np.eye(gram.shape[1])


def fit(H, w, support):
    """The best weights of one unit on a support, and half their squared error."""
    new = np.zeros_like(w)
    if support.any():
        inside = H[np.ix_(support, support)]
        new[support] = np.linalg.solve(inside, (H @ w)[support])
    return new, (new - w) @ H @ (new - w) / 2


def fitted(H, W, support):
    units = np.ndindex(len(W), W.shape[2])
    new = np.zeros_like(W)
    for lane, j in units:
        new[lane, :, j], _ = fit(H[lane], W[lane, :, j], support[lane, :, j])
    return new


def naive(H, w, groups, may=lambda alive: np.ones(len(alive), bool)):
    """The definition: each group's loss with the inverse of what is left, anew.

    ``w`` is ``[d_in, units]``; a group is an array of inputs.
    """
    w, alive, order, losses = w.copy(), np.ones(len(groups), bool), [], []
    while (may(alive) & alive).any():
        rest = np.concatenate([g for g, a in zip(groups, alive, strict=True) if a])
        K = np.zeros_like(H)
        K[np.ix_(rest, rest)] = np.linalg.inv(H[np.ix_(rest, rest)])
        cost = np.full(len(groups), np.inf)
        for k in np.flatnonzero(may(alive) & alive):
            part, inside = w[groups[k]], K[np.ix_(groups[k], groups[k])]
            cost[k] = np.sum(part * np.linalg.solve(inside, part)) / 2
        k = int(np.argmin(cost))
        g = groups[k]
        w -= K[:, g] @ np.linalg.solve(K[np.ix_(g, g)], w[g])
        w[g] = 0
        alive[k] = False
        order.append(k)
        losses.append(cost[k])
    return order, losses, alive


def merged(sequences):
    """The rows' groups in the order of their least next losses, by a loop."""
    heads, out = [0] * len(sequences), []
    while True:
        left = [k for k, s in enumerate(sequences) if heads[k] < len(s[0])]
        if not left:
            return out
        k = min(left, key=lambda k: sequences[k][1][heads[k]])
        out.append((k, sequences[k][0][heads[k]]))
        heads[k] += 1


def answer(pattern, W, gram, damping=DAMPING):
    rule = nt.LayerOBS(pattern, damping=damping)
    return np.asarray(RUN(rule, jnp.asarray(W), jnp.asarray(gram)))


def singles(d_in):
    return [np.array([i]) for i in range(d_in)]


def test_one_removal_is_the_best_of_all_by_brute_force():
    for seed in range(5):
        W, gram = problem(lanes=1, d_out=1, seed=seed)
        H, w = with_damping(gram)[0], W[0, :, 0]
        tried = [fit(H, w, np.arange(12) != q) for q in range(12)]
        best = min(tried, key=lambda one: one[1])
        new = answer(nt.Sparsity(1 / 12), W, gram)[0, :, 0]
        np.testing.assert_allclose(new, best[0], atol=1e-10)
        closed = w**2 / (2 * np.diag(np.linalg.inv(H)))
        np.testing.assert_allclose([one[1] for one in tried], closed, rtol=1e-8)


def test_the_sequence_is_that_of_the_definition():
    found = jax.jit(elimination.removals, static_argnames="grid")
    for seed in range(10):  # of three units each
        W, gram = problem(d_in=12, lanes=1, seed=seed)
        H = with_damping(gram)
        got = found(jnp.asarray(H), jnp.asarray(W), None, NONE, Grid())
        for j in range(3):
            order, losses, _ = naive(H[0], W[0, :, j : j + 1], singles(12))
            assert got.group[j].tolist() == order
            np.testing.assert_allclose(got.loss[j], losses, rtol=1e-7)


def support_of(pattern, H, W):
    """The definition of each pattern's choice."""
    b, d_in, d_out = W.shape
    kept = np.ones(W.shape, bool)
    if isinstance(pattern, nt.NM):

        def may(alive):
            spans = alive.reshape(-1, pattern.m).sum(1)
            return np.repeat(spans > pattern.n, pattern.m)

        for lane, j in np.ndindex(b, d_out):
            w = W[lane, :, j : j + 1]
            kept[lane, :, j] = naive(H[lane], w, singles(d_in), may)[2]
        return kept
    r, c = {nt.Blocks: getattr(pattern, "shape", None), nt.Inputs: (1, d_out)}.get(
        type(pattern), (1, 1)
    )
    groups = [np.arange(i, min(i + r, d_in)) for i in range(0, d_in, r)]
    rows = [(lane, slice(j, j + c)) for lane in range(b) for j in range(0, d_out, c)]
    found = [naive(H[lane], W[lane, :, units], groups) for lane, units in rows]
    if getattr(pattern, "scope", "layer") == "column":
        gone = [
            (k, g)
            for k, one in enumerate(found)
            for g in one[0][: round(pattern.level * d_in)]
        ]
    else:
        gone = merged(found)[: round(pattern.level * len(rows) * len(groups))]
    for k, g in gone:
        lane, units = rows[k]
        kept[lane, groups[g], units] = False
    return kept


PATTERNS = [
    nt.Sparsity(0.6),
    nt.Sparsity(0.5, scope="column"),
    nt.NM(2, 4),
    nt.Blocks(0.5, (3, 1)),
    nt.Blocks(0.5, (5, 2), pad=True),
    nt.Inputs(0.4),
]


@pytest.mark.parametrize("pattern", only_fast(PATTERNS[::3], PATTERNS), ids=repr)
def test_every_pattern_is_its_definition(pattern):
    W, gram = problem()
    H = with_damping(gram)
    new, want = answer(pattern, W, gram), support_of(pattern, H, W)
    np.testing.assert_array_equal(new != 0, want)
    np.testing.assert_allclose(new, fitted(H, W, want), atol=1e-9)


def test_whole_units_go_by_the_size_of_their_response():
    W, gram = problem(d_out=5)
    H = with_damping(gram)
    new = answer(nt.Neurons(0.4), W, gram)
    sizes = np.einsum("bij,bik,bkj->bj", W, H, W)
    kept = (new != 0).any(1)
    assert kept.sum() == 6 and sizes[kept].min() > sizes[~kept].max()
    np.testing.assert_array_equal(new, np.where(kept[:, None], W, 0))


@slow
def test_losses_that_fall_follow_at_once():
    found = elimination.Removals(
        jnp.array([[1, 0, 2], [2, 1, 3]]), jnp.array([[1.0, 5, 2], [3.0, 4, 0]])
    )
    order = elimination.merged(found, together=True)
    # 1 of the first row; 3 and 4 of the second; 5 and 2 of the first
    assert order.place[0].tolist() == [4, 1, 5]
    assert order.place[1].tolist()[1:] == [3, 2] and order.place[1, 0] == 7
    assert order.losses.tolist()[:5] == [1, 3, 4, 5, 2]


@slow
def test_more_inputs_than_a_block_and_more_units_than_a_turn(monkeypatch):
    W, gram = problem(d_in=70, d_out=5, lanes=1)
    H, want = with_damping(gram), answer(nt.Sparsity(0.7), W, gram)
    assert (want != 0).sum() == 105
    np.testing.assert_allclose(want, fitted(H, W, want != 0), atol=1e-9)
    rows = [naive(H[0], W[0, :, j : j + 1], singles(70)) for j in range(5)]
    gone = np.zeros((1, 70, 5), bool)
    for j, i in merged(rows)[:245]:
        gone[0, i, j] = True
    np.testing.assert_array_equal(want == 0, gone)
    monkeypatch.setattr(support, "MEMORY", 2 * 70**2 * 8)
    RUN.clear_cache()  # which does not know of it
    np.testing.assert_allclose(answer(nt.Sparsity(0.7), W, gram), want, atol=1e-10)


def test_a_mask_is_where_the_removals_start():
    W, gram = problem(d_in=12, d_out=4)
    H, rng = with_damping(gram), np.random.default_rng(1)
    allowed = rng.random(W.shape) < 0.6
    inner = Count(left=jnp.int32(30), shape=W.shape)
    rule = nt.LayerOBS(Within(inner, jnp.asarray(allowed)), damping=DAMPING)
    new = np.asarray(RUN(rule, jnp.asarray(W), jnp.asarray(gram)))
    assert (new != 0).sum() == 30 and allowed[new != 0].all()
    found = []
    for lane, j in np.ndindex(2, 4):
        inside = np.flatnonzero(allowed[lane, :, j])
        h = H[lane][np.ix_(inside, inside)]
        w, _ = fit(H[lane], W[lane, :, j], allowed[lane, :, j])
        order, losses, _ = naive(h, w[inside, None], singles(len(inside)))
        found.append(([(lane, inside[k], j) for k in order], losses))
    want = allowed.copy()
    for _, place in merged(found)[: allowed.sum() - 30]:
        want[place] = False
    np.testing.assert_array_equal(new != 0, want)
    np.testing.assert_allclose(new, fitted(H, W, want), atol=1e-9)


@slow
def test_in_float32_weights_are_the_least_squares_of_their_support():
    W, gram = problem(d_in=60, d_out=4, lanes=1)
    new = answer(nt.Sparsity(0.8), W.astype("f4"), gram.astype("f4"), 1e-4)
    want = fitted(with_damping(gram, 1e-4), W, new != 0)
    np.testing.assert_allclose(new, want, atol=2e-5)
    exact = answer(nt.Sparsity(0.8), W, gram, 1e-4)
    errors = [np.einsum("bij,bik,bkj->", a - W, gram, a - W) for a in (new, exact)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@slow
def test_without_damping_it_may_be_well_posed_and_says_if_it_is_not():
    W, gram = problem(lanes=1)
    new = answer(nt.Sparsity(0.5), W, gram, 0.0)
    np.testing.assert_allclose(new, fitted(gram, W, new != 0), atol=1e-9)
    twice = np.concatenate([models.data(50, 8), models.data(50, 8)], axis=1)
    bare = nt.LayerOBS(nt.Sparsity(0.5), damping=0.0)
    with pytest.raises(SolveError, match="LayerOBS.*the inputs"):
        nt.prune(models.normal(16, 4), lambda w, x: x @ w, twice, method=bare)


# ---- maps, derivatives, traces


@slow
@pytest.mark.parametrize("pattern", only_fast(PATTERNS[:1], PATTERNS[:3]), ids=repr)
def test_maps_are_loops(pattern):
    W, gram = (jnp.asarray(a) for a in problem(lanes=4))
    rule = nt.LayerOBS(pattern)
    pairs = W.reshape(2, 2, *W.shape[1:]), gram.reshape(2, 2, *gram.shape[1:])
    mapped = jax.jit(jax.vmap(rule.answer))(*pairs)
    want = jnp.stack([RUN(rule, *pair) for pair in zip(*pairs, strict=True)])
    np.testing.assert_allclose(mapped, want, atol=1e-11)


@slow
def test_derivatives_are_those_of_the_fit():
    W, gram = (jnp.asarray(a) for a in problem(d_in=10, lanes=1))

    def weights(W, gram, damping):
        gram = (gram + gram.transpose(0, 2, 1)) / 2
        return nt.LayerOBS(nt.Sparsity(0.5), damping=damping).answer(W, gram)

    given = W, gram, jnp.asarray(0.02)
    check_grads(jax.jit(weights), given, 1, atol=1e-5, rtol=1e-5)


@slow
@pytest.mark.parametrize(
    "pattern",
    only_fast(
        [nt.Sparsity(0.5)],
        [
            nt.Sparsity(0.5),
            nt.Sparsity(0.5, scope="column"),
            nt.Blocks(0.5, (4, 2)),
            nt.Inputs(0.5),
            nt.Neurons(0.5),
        ],
    ),
    ids=repr,
)
def test_levels_of_a_trace_are_separate_runs(pattern):
    rng = np.random.default_rng(3)
    X, W = rng.normal(size=(60, 12)), rng.normal(size=(12, 4))
    # without a level it is the same
    found = nt.trace(
        nt.linear_program(X, X @ W + 3, 0.0, bias="free"),
        W,
        pattern=dataclasses.replace(pattern, level=None),
    )
    X = X - X.mean(0)
    H = damped(jnp.asarray(X.T @ X)[None], jnp.asarray(W)[None], 0.01)[0][0]
    for level in (0.0, 0.25, 0.5, 0.75):
        at = dataclasses.replace(pattern, level=level)
        new = answer(at, W[None], (X.T @ X)[None], 0.01)[0]
        left = int((new != 0).sum())
        np.testing.assert_allclose(found.at(left), new, atol=1e-9)
        step = found.left.tolist().index(left)
        loss = np.sum((new - W) * (H @ (new - W))) / 2
        assert float(found.losses[step]) == pytest.approx(float(loss), abs=1e-9)
    assert found.left[0] == 48 and found.left[-1] == 0
    assert float(found.sparsity[-1]) == 1 and not found.at(0).any()


@slow
def test_a_trace_is_stacked_and_finds_the_weights_itself():
    rng = np.random.default_rng(4)
    X, W = rng.normal(size=(2, 60, 6)), rng.normal(size=(2, 6, 2))
    stack = [nt.linear_program(x, x @ w, 0.0) for x, w in zip(X, W, strict=True)]
    joined = jax.tree.map(lambda *a: jnp.stack(a), *stack)
    every = jax.vmap(lambda p: nt.trace(p, damping=0.0))(joined)
    weights = jax.vmap(lambda found: found.at(5))(every)
    for k, program in enumerate(stack):
        one = nt.trace(program, damping=0.0)
        np.testing.assert_allclose(one.W, W[k], atol=1e-9)
        np.testing.assert_array_equal(every.place[k], one.place)
        np.testing.assert_allclose(weights[k], one.at(5), atol=1e-9)


# ---- what it refuses


def test_what_is_out_of_reach_is_refused_by_name():
    wide = {"w": jnp.zeros((4096, 4096), "float32")}
    method = nt.LayerOBS(nt.Sparsity(0.5))
    with pytest.raises(MethodError, match="w: LayerOBS.*4096 inputs, 4096 units.*Spar"):
        nt.prune(
            wide, lambda p, x: x @ p["w"], jnp.ones((4, 4096), "float32"), method=method
        )
    kind = LayerKind((1, 4096, 4096), None, False, 1, 1, 0, False)
    nt.LayerOBS(nt.Neurons(0.5)).bind(kind, False)
    kind = kind._replace(shape=(1, 4096, 2048))
    with pytest.raises(MethodError, match="2048 units and 4096 removals"):
        method.bind(kind, False)
    nt.LayerOBS(nt.Sparsity(0.01, scope="column")).bind(kind, False)


def test_what_is_wrong_says_so():
    class Own:
        def check(self, shape):
            pass

        def keep(self, score):
            return score > 0

    with pytest.raises(MethodError, match="Own.*expected Sparsity, NM"):
        nt.LayerOBS(Own())
    for damping in (-1.0, np.nan, "much"):
        with pytest.raises(MethodError, match="damping.*a finite number of at least 0"):
            nt.LayerOBS(nt.Sparsity(0.5), damping=damping)
        with pytest.raises(MethodError, match="damping.*a finite number of at least 0"):
            nt.trace(None, damping=damping)
    X, Y = np.ones((4, 3)), np.eye(4, 2)
    linear = nt.linear_program(X, Y, 0.0)
    with pytest.raises(MethodError, match="trace.*NM.*expected Sparsity"):
        nt.trace(linear, pattern=nt.NM(2, 4))
    with pytest.raises(ProgramError, match="trace: expected a program, got ndarray"):
        nt.trace(X)
    with pytest.raises(ProgramError, match=r"expected W \[3, 2\], got \[2, 3\]"):
        nt.trace(linear, np.ones((2, 3)))
    with pytest.raises(ProgramError, match="a ReLU.*give them"):
        nt.trace(nt.relu_program(X, Y, 0.0))
    with pytest.raises(ProgramError, match="bias='free'"):
        nt.trace(nt.linear_program(X, Y, 0.0, bias="penalized"))
    stack = jax.tree.map(lambda a: a[None], linear)
    with pytest.raises(ProgramError, match="one program, got a stack"):
        nt.trace(stack)
