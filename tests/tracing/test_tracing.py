"""Layers from the jaxpr: what is found in each model, and that it is what ran."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from marks import only_fast

from nettrim_jax._trees import is_array, paths_of
from nettrim_jax.calibration.capture import Draw, capture
from nettrim_jax.calibration.padding import row_weights
from nettrim_jax.tracing import entries as masks
from nettrim_jax.tracing import jaxprs
from nettrim_jax.tracing.sites import trace

ALL = pytest.mark.parametrize("name", models.MODELS)
# one of each way to fold; a capture takes seconds to compile
FAST = """
relu-forms relu-of-more bfloat16 cast float64 moved fused-qkv experts
scan-of-layers scale-of-its-own-per-step scan-in-scan wrapped switch
convolutions grouped linen-transposed linen-batch-norm linen-residual
equinox
""".split()
CAPTURED = pytest.mark.parametrize("name", only_fast(FAST, models.MODELS))
EVERY_ROW = 10**6
# of the largest answer: products in bfloat16 round before we see them
TOL = {"bfloat16": 0.02, "cast": 0.02, "linen-bfloat16": 0.02, "float64": 1e-12}


@functools.cache
def graph_of(name):
    model = models.get(name)
    return trace(model.apply_fn, model.params, model.batch)


def leaves_of(name):
    return [leaf for leaf in jax.tree.leaves(models.get(name).params) if is_array(leaf)]


@ALL
def test_every_array_is_float32_unless_it_says_so(name):
    if name in ("float64", "bfloat16", "cast"):
        return
    dtypes = {leaf.dtype for leaf in leaves_of(name)}
    assert jnp.dtype("float64") not in dtypes
    assert jnp.dtype("float32") in dtypes


@ALL
def test_finds_what_there_is(name):
    model, graph = models.get(name), graph_of(name)
    found = [(site.path, site.kind, site.response) for site in graph.sites]
    assert found == list(model.sites)
    if model.shapes is not None:
        assert [site.index.shape for site in graph.sites] == list(model.shapes)


@ALL
def test_says_why_it_leaves_the_rest_alone(name):
    model, graph = models.get(name), graph_of(name)
    assert [path for path, _ in graph.skipped] == [path for path, _ in model.skipped]
    for (path, reason), (_, fragment) in zip(graph.skipped, model.skipped, strict=True):
        assert fragment in reason, path


@ALL
def test_no_matrix_is_lost(name):
    graph = graph_of(name)
    matrices = {
        path
        for path, leaf in zip(graph.paths, leaves_of(name), strict=True)
        if leaf.ndim >= 2
    }
    taken = {site.path for site in graph.sites}
    skipped = [path for path, _ in graph.skipped]
    assert len(set(skipped)) == len(skipped)
    assert not taken & set(skipped)
    assert matrices <= taken | set(skipped)
    assert all(reason for _, reason in graph.skipped)


@ALL
def test_paths_are_those_of_jax(name):
    model, graph = models.get(name), graph_of(name)
    leaves = jax.tree_util.tree_flatten_with_path(model.params)[0]
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/") or "params"
        for path, leaf in leaves
        if is_array(leaf)
    ]
    assert list(graph.paths) == names == list(paths_of(model.params))


@ALL
def test_each_entry_is_in_one_place(name):
    graph, leaves = graph_of(name), leaves_of(name)
    used = {}
    for site in graph.sites:
        used.setdefault(site.leaf, []).append(site.index.ravel())
        if site.bias is not None:
            used.setdefault(site.bias[0], []).append(site.bias[1].ravel())
            assert site.bias[1].shape == (site.index.shape[0], site.index.shape[2])
    for leaf, indices in used.items():
        entries = np.concatenate(indices)
        assert len(np.unique(entries)) == len(entries)
        assert 0 <= entries.min() and entries.max() < leaves[leaf].size


@CAPTURED
def test_folded_problem_is_the_operation(name):
    model, graph, leaves = models.get(name), graph_of(name), leaves_of(name)
    chosen = tuple(range(len(graph.sites)))
    seen, outputs = capture(
        graph,
        Draw(chosen, EVERY_ROW, ((),) * len(chosen)),
        graph.consts,
        [*leaves, *jax.tree.leaves(model.batch)],
        jax.random.key(0),
    )
    for site, rows in zip(graph.sites, seen, strict=True):
        valid = np.asarray(rows.valid)
        ragged = any(use.folding.ragged for use in site.uses)
        if ragged:  # each row goes to one expert
            assert valid.sum() == sum(use.rows for use in site.uses)
        elif name != "switch":  # a branch not taken has no rows
            assert valid.all()
        assert rows.X.shape[1] == sum(use.rows for use in site.uses)
        X, t, P, scale = (
            np.asarray(a, float) for a in (rows.X, rows.t, rows.P, rows.scale)
        )
        W = np.asarray(leaves[site.leaf], float).ravel()[site.index]
        again = scale[:, None, :] * (X @ W) + t
        if ragged:
            again, P = again[valid], P[valid]
        size = np.abs(P).max()
        assert size > 0, site.path
        np.testing.assert_allclose(
            again, P, rtol=0, atol=TOL.get(name, 2e-6) * size, err_msg=site.path
        )
    # the run is the network's own
    want = eqx.filter_jit(model.apply_fn)(model.params, model.batch)
    for one, two in zip(outputs, jax.tree.leaves(want), strict=True):
        assert one.dtype == two.dtype
        one, two = np.asarray(one, complex), np.asarray(two, complex)
        size = np.abs(two).max()
        np.testing.assert_allclose(one, two, atol=TOL.get(name, 1e-5) * size)


@CAPTURED
def test_writing_back_what_was_read_changes_nothing(name):
    graph, leaves = graph_of(name), leaves_of(name)

    @jax.jit
    def write_back(leaves):
        for site in graph.sites:
            places = [(site.leaf, site.index)]
            places += [] if site.bias is None else [site.bias]
            for leaf, index in places:
                entries = masks.Entries(leaves[leaf], index)
                leaves[leaf] = masks.write(entries, masks.read(entries))
        return leaves

    again = models.arrays(write_back(list(leaves)))
    for old, new in zip(models.arrays(leaves), again, strict=True):
        assert new.dtype == old.dtype and new.tobytes() == old.tobytes()


BIASES = {
    "plain": ["0/b", "1/b", "2/b"],
    "list-of-pairs": ["0/1", "1/1"],
    "single-array": [None],
    "relu-of-more": [None] * 7,  # read by more than one layer
    "scan-of-layers": ["b", None],
    "convolutions": [None, "b", None, None, None],
    "linen": [f"params/Dense_{i}/bias" for i in range(3)],
    "linen-no-bias": [None] * 3,
    "linen-batch-norm": [f"params/Dense_{i}/bias" for i in range(3)],
    "linen-remat": [f"params/Dense_{i}/bias" for i in range(3)],
    "linen-scan": ["params/layers/Dense_0/bias", "params/Dense_0/bias"],
    "equinox": [f"layers/{i}/bias" for i in range(3)],
    "haiku": ["mlp/~/linear_0/b", "mlp/~/linear_1/b"],
}


@pytest.mark.parametrize("name", BIASES)
def test_finds_the_bias_that_may_move(name):
    graph = graph_of(name)
    found = [s.bias and graph.paths[s.bias[0]] for s in graph.sites]
    assert found == BIASES[name]


def moves(rng, shape):
    """Random index maps from an array of this shape to a matrix, for np and jnp."""
    out = []
    for _ in range(rng.integers(1, 6)):
        kind = rng.choice(["transpose", "reshape", "slice", "flip", "split", "one"])
        if kind == "transpose":
            order = tuple(int(a) for a in rng.permutation(len(shape)))
            out.append(lambda xp, a, order=order: xp.transpose(a, order))
            shape = tuple(shape[a] for a in order)
        elif kind == "reshape" and len(shape) > 1:
            at = int(rng.integers(len(shape) - 1))
            shape = (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
            out.append(lambda xp, a, shape=shape: xp.reshape(a, shape))
        elif kind == "reshape" and shape[0] % 2 == 0:
            shape = (2, shape[0] // 2, *shape[1:])
            out.append(lambda xp, a, shape=shape: xp.reshape(a, shape))
        elif kind == "slice" and shape[-1] > 2:
            stop, step = shape[-1], int(rng.integers(1, 3))
            cut = functools.partial(jax.lax.slice_in_dim, axis=len(shape) - 1)
            cut = functools.partial(cut, start_index=1, limit_index=stop, stride=step)
            out.append(  # a[..., 1::2] is a gather in older versions of JAX
                lambda xp, a, cut=cut, step=step: (
                    a[..., 1::step] if xp is np else cut(a)
                )
            )
            shape = (*shape[:-1], len(range(1, stop, step)))
        elif kind == "flip":
            out.append(lambda xp, a: xp.flip(a, 0))
        elif kind == "split" and shape[0] % 2 == 0:
            out.append(lambda xp, a: xp.split(a, 2)[1])
            shape = (shape[0] // 2, *shape[1:])
        elif kind == "one":
            out.append(lambda xp, a: xp.squeeze(xp.expand_dims(a, 1), 1))
    split = int(np.prod(shape[: max(1, len(shape) // 2)]))
    out.append(lambda xp, a: xp.reshape(a, (split, -1)))
    return lambda xp, a: functools.reduce(lambda a, move: move(xp, a), out, a), split


@pytest.mark.parametrize("seed", range(40))
def test_index_maps_are_what_numpy_does(seed):
    rng = np.random.default_rng(seed)
    shape = [(12, 20), (4, 6, 10), (2, 3, 4, 8)][seed % 3]
    move, d_in = moves(rng, shape)
    graph = trace(
        lambda w, x: x @ move(jnp, w), models.normal(*shape), models.data(16, d_in)
    )
    [site] = graph.sites
    want = move(np, np.arange(np.prod(shape)).reshape(shape))
    np.testing.assert_array_equal(site.index, want[None])


EINSUMS = {
    "bd,df->bf": (1, 8, 4),
    "df,bd->fb": (1, 8, 4),
    "bd,fd->fb": (1, 8, 4),
    "bhd,hdf->bhf": (3, 8, 4),
    "hdf,bhd->fhb": (3, 8, 4),
    "btd,dhf->bthf": (1, 8, 12),
    "bthf,hfd->btd": (1, 12, 8),
    "bhd,fdh->bf": (1, 24, 4),
    "htbd,dhf->bhtf": (3, 8, 4),
}


@pytest.mark.parametrize("spec", EINSUMS)
def test_einsums_fold(spec):
    sizes = dict(b=6, t=2, d=8, f=4, h=3)
    operands = spec.split("->")[0].split(",")
    side = ["b" in operand for operand in operands].index(False)
    rng = np.random.default_rng(0)
    act, weight = (
        rng.normal(size=[sizes[a] for a in operands[i]]).astype("float32")
        for i in (1 - side, side)
    )

    def apply_fn(w, x):
        pair = (w, x) if side == 0 else (x, w)
        return jnp.einsum(spec, *pair)

    graph = trace(apply_fn, weight, act)
    [site] = graph.sites
    assert site.index.shape == EINSUMS[spec]
    draw = Draw((0,), EVERY_ROW, ((),))
    [rows], [out] = capture(graph, draw, (), [weight, act], jax.random.key(0))
    W = weight.ravel()[site.index]
    np.testing.assert_allclose(rows.X @ W, rows.P, atol=1e-5)
    pair = (weight, act) if side == 0 else (act, weight)
    want = np.einsum(spec, *pair)
    np.testing.assert_allclose(out, want, atol=1e-5)
    # every answer of the network is among the rows, once
    np.testing.assert_allclose(
        np.sort(rows.P.ravel()), np.sort(want.ravel()), atol=1e-5
    )


def test_capture_draws_rows_without_bias():
    model, graph = models.get("plain"), graph_of("plain")
    draws = []
    for seed in range(40):
        seen, _ = capture(
            graph,
            Draw((0,), 16, ((),)),
            graph.consts,
            [*leaves_of("plain"), model.batch],
            jax.random.key(seed),
        )
        draws.append(np.asarray(seen[0].X[0]))
    batch = np.asarray(model.batch)
    counts = np.zeros(len(batch))
    for rows in draws:
        which = [int(np.flatnonzero((batch == row).all(1))[0]) for row in rows]
        assert len(set(which)) == 16  # without repetition
        counts[which] += 1
    # 40 draws of 16 among 64: 10 each on average, standard deviation 2.7
    assert counts.mean() == 10
    assert counts.min() >= 1 and counts.max() <= 21 and counts.std() < 4


def test_capture_puts_padding_last_and_marks_it():
    model, graph = models.get("plain"), graph_of("plain")
    weights = jnp.asarray(np.arange(models.N) % 3 > 0, jnp.float32)
    seen, _ = capture(
        graph,
        Draw((0, 1), EVERY_ROW, ((), ())),
        graph.consts,
        [*leaves_of("plain"), model.batch],
        jax.random.key(0),
        row_weights(graph, weights),
    )
    count = int(weights.sum())
    for rows in seen:
        valid = np.asarray(rows.valid)
        assert valid[:, :count].all() and not valid[:, count:].any()
    real = np.asarray(model.batch)[np.asarray(weights) > 0]
    rows = np.asarray(seen[0].X[0, :count])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, real.tolist()))


@ALL
def test_a_model_made_again_gives_the_same_graph(name):
    """So that nothing is compiled again for it."""
    params, apply_fn, batch = models.MODELS[name].make()
    again = trace(apply_fn, params, batch)
    assert again is not graph_of(name)
    assert again == graph_of(name) and hash(again) == hash(graph_of(name))


def test_graphs_are_equal_if_they_compute_the_same():
    params, apply_fn, batch = models.get("plain")[1:4]
    one = trace(lambda p, x: apply_fn(p, x), params, batch)
    two = trace(lambda p, x: apply_fn(p, x), params, batch)
    assert one == two and hash(one) == hash(two)
    assert one != trace(lambda p, x: 2 * apply_fn(p, x), params, batch)
    # the same program of a tree with other names gives sites of other names
    renamed = {
        f"{name}": layer for name, layer in zip("abc", params.values(), strict=True)
    }
    again = trace(
        lambda p, x: apply_fn({"012"["abc".index(k)]: p[k] for k in p}, x),
        renamed,
        batch,
    )
    assert [site.path for site in again.sites] == ["a/w", "b/w", "c/w"]
    assert one != again


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1), (1, 2, 0)])
def test_a_whole_leaf_is_kept_as_its_order(order):
    leaf = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    index = np.arange(24, dtype=np.int32).reshape(2, 3, 4).transpose(order)
    whole = masks.of(jnp.asarray(leaf), index)
    assert isinstance(whole.index, masks.Whole)
    plain = masks.Entries(jnp.asarray(leaf), jnp.asarray(index))
    values = jnp.asarray(np.random.default_rng(0).normal(size=index.shape), "float32")
    for one in (whole, jax.tree.map(np.asarray, whole)):
        np.testing.assert_array_equal(masks.read(one), masks.read(plain))
        np.testing.assert_array_equal(
            masks.write(one, values), masks.write(plain, values)
        )


def test_a_part_of_a_leaf_and_another_order_are_maps():
    leaf = jnp.zeros((4, 6))
    every = np.arange(24, dtype=np.int32).reshape(1, 4, 6)
    swapped = every.copy()
    swapped[0, 1, 2], swapped[0, 2, 1] = every[0, 2, 1], every[0, 1, 2]
    for index in (every[:, :2], every[:, ::-1], swapped):
        assert not isinstance(masks.of(leaf, index).index, masks.Whole)


def test_the_limits_of_a_clip_are_those_of_the_function():
    sites = {site.path: site for site in graph_of("clip-forms").sites}
    for name, (function, low, high) in models.CLIPS.items():
        assert sites[name].clip == (low, high), name
        z = np.linspace(-8, 8, 64, dtype="float32").reshape(8, 8)
        if name in ("hard-sigmoid", "pooled", "read-after"):
            continue  # the clip is not all that they do
        np.testing.assert_allclose(function(z), np.clip(z, low, high), rtol=1e-6)


def test_newer_operations_are_told_in_older_ones():
    """``stack``, ``unstack`` and ``tile`` are operations of their own by now."""
    w = jnp.arange(24.0, dtype="float32").reshape(2, 3, 4)

    def stacked(p, x):
        return jnp.einsum("ni,eio->eno", x, jnp.stack([p["w"][1], p["w"][0]]))

    def apart(p, x):
        first, second = jnp.unstack(p["w"]) if hasattr(jnp, "unstack") else p["w"]
        return x @ first, x @ second

    def tiled(p, x):
        return x @ jnp.tile(p["w"][0], (1, 1)), x @ p["w"][1]

    x = jnp.ones((5, 3), "float32")
    for apply_fn in (stacked, apart, tiled):
        network = trace(apply_fn, {"w": w}, x)
        assert {site.path for site in network.sites} == {"w"}
        assert sum(site.index.size for site in network.sites) == w.size
        found = jaxprs.evaluate(network.flat, network.consts, [w, x])[0]
        wanted = jax.tree.leaves(apply_fn({"w": w}, x))
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
