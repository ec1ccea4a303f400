"""What is not there: entries, samples, layers to prune, buffers, and numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast

import nettrim_jax as nt

HALF = nt.Magnitude(nt.Sparsity(0.5))
ALL = {".*": HALF}


def params():
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 8), "b": (8, 4)}
    return {
        name: rng.normal(size=size).astype("float32") for name, size in shapes.items()
    }


def rows(n=48):
    return np.random.default_rng(1).normal(size=(n, 8)).astype("float32")


def apply_fn(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def same(one, other):
    for tree in ("params", "mask"):
        for name in params():
            a, b = (np.asarray(getattr(x, tree)[name]) for x in (one, other))
            np.testing.assert_array_equal(a, b)


# ---- leaves and operations without entries

EMPTY = {
    "no units": ((8, 0), lambda p, x: x @ p["e"]),
    "no inputs": ((0, 4), lambda p, x: x[:, :0] @ p["e"]),
    "part": ((8, 4), lambda p, x: x[:, :0] @ p["e"][:0]),
    "kernel": (
        (3, 8, 0),
        lambda p, x: jax.lax.conv_general_dilated(
            x[:, None], p["e"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )[:, 0],
    ),
}


def test_a_batch_without_a_sample_for_one_layer():
    more = {**params(), "k": np.ones((3, 3, 2, 4), "float32")}

    def both(params, batch):
        x, images = batch
        layout = ("NHWC", "HWIO", "NHWC")
        seen = jax.lax.conv_general_dilated(
            images, params["k"], (1, 1), "SAME", dimension_numbers=layout
        )
        return apply_fn(params, x), seen

    images = np.random.default_rng(2).normal(size=(4, 6, 6, 2)).astype("float32")
    batches = [(rows(), images), (rows(), images[:0])]
    method = nt.Wanda(nt.Sparsity(0.5))
    seen = nt.prune(more, both, iter(batches), method=method)
    alone = nt.prune(more, both, batches[0], method=method)
    np.testing.assert_array_equal(seen.mask["k"], alone.mask["k"])


CASES = [(name, mode) for name in EMPTY for mode in ("parallel", "cascade")]
QUICK = [case for k, case in enumerate(CASES) if k % 4 in (0, 3)]


@pytest.mark.parametrize("case", only_fast(QUICK, CASES), ids="-".join)
def test_a_leaf_without_entries_is_left_alone(case):
    name, mode = case
    shape, use = EMPTY[name]

    def both(params, x):
        return apply_fn(params, x), use(params, x)

    more = {**params(), "e": np.ones(shape, "float32")}
    seen = nt.prune(more, both, rows(), method=HALF, mode=mode)
    same(seen, nt.prune(params(), apply_fn, rows(), method=HALF, mode=mode))
    [(path, reason)] = seen.report.skipped
    assert path == "e" and "none of its entries is used" in reason
    assert seen.mask["e"].shape == shape and seen.mask["e"].all()
    fitted = nt.refit(more, seen.mask, both, rows(), mode=mode)
    assert fitted.params["e"].shape == shape


@pytest.mark.parametrize(
    "method",
    [
        HALF,
        nt.Wanda(nt.Sparsity(0.5)),
        pytest.param(
            nt.Reconstruct(nt.Sparsity(0.5), bias="fixed"), marks=pytest.mark.slow
        ),
    ],
)
def test_an_operation_without_rows_adds_none(method):
    def both(params, x):
        return apply_fn(params, x), jax.nn.relu(x[:0] @ params["a"])

    one = nt.prune(params(), apply_fn, rows(), method=method)
    same(nt.prune(params(), both, rows(), method=method), one)


# ---- batches without a sample


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_batch_without_a_sample_is_passed_over(at, mode):
    given = [rows(), rows() + 1]
    holed = [*given[:at], rows(0), *given[at:]]
    settings = {"method": nt.Wanda(nt.Sparsity(0.5)), "mode": mode}
    seen = nt.prune(params(), apply_fn, iter(holed), **settings)
    same(seen, nt.prune(params(), apply_fn, iter(given), **settings))


def test_streams_without_a_sample():
    with pytest.raises(nt.results.BatchError, match="none of the loader's 2 batches"):
        nt.prune(params(), apply_fn, iter([rows(0), rows(0)]), method=HALF)
    with pytest.raises(nt.results.BatchError, match="has no rows for a"):
        nt.prune(params(), apply_fn, rows(0), method=HALF)
    assert len(nt.sites(params(), apply_fn, iter([rows(0), rows()])).sites) == 2


# ---- nothing to prune


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"method": {"a": None}}, r"a: method\['a'\] is None; b: no pattern"),
        ({"method": {}}, "a: no pattern of method matches"),
        ({"method": ALL, "include": lambda site: False}, "include=<lambda> leaves it"),
        ({"method": {"a": HALF}, "include": "b"}, "include='b' leaves it out; b: no"),
    ],
)
def test_a_choice_of_nothing(settings, reason):
    with pytest.raises(nt.results.MethodError, match=f"no layer is left.*{reason}"):
        nt.prune(params(), apply_fn, rows(), **settings)
    assert not nt.sites(params(), apply_fn, rows(), **settings).sites


@pytest.mark.parametrize(
    "settings",
    [
        {"method": {"a": None, "b": None}},
        {"method": {"a": None, ".*": HALF}, "exclude": "b"},
        {"method": HALF, "exclude": "."},
    ],
)
def test_all_may_be_left_alone_by_name(settings):
    seen = nt.prune(params(), apply_fn, rows(), **settings)
    assert not seen.report.sites and len(seen.report.skipped) == 2


# ---- buffers that are gone


def gone(tree):
    tree = jax.tree.map(jnp.asarray, tree)
    jax.tree.leaves(tree)[-1].delete()
    return tree


def test_deleted_arrays_are_named():
    mask = jax.tree.map(lambda a: abs(a) > 0.5, params())
    for call, error, where in [
        (
            lambda: nt.prune(gone(params()), apply_fn, rows()),
            "ParamsError",
            "params: b",
        ),
        (
            lambda: nt.prune(params(), apply_fn, gone(rows())),
            "BatchError",
            "batch: the array",
        ),
        (
            lambda: nt.prune(params(), apply_fn, iter([rows(), gone(rows())])),
            "BatchError",
            "batch 1: the array",
        ),
        (
            lambda: nt.prune(params(), apply_fn, rows(), weights=gone(np.ones(48))),
            "BatchError",
            "weights: the array",
        ),
        (
            lambda: nt.prune(params(), apply_fn, rows(), within=gone(mask)),
            "ParamsError",
            r"prune\(within\): b",
        ),
        (
            lambda: nt.refit(params(), gone(mask), apply_fn, rows()),
            "ParamsError",
            "refit: b",
        ),
    ]:
        with pytest.raises(getattr(nt.results, error), match=f"{where} was deleted"):
            call()


def test_a_deleted_constant_is_noticed():
    scale = gone(np.ones((1, 8), "float32"))
    with pytest.raises(nt.results.ApplyFnError, match="closes over.*was deleted"):
        nt.prune(params(), lambda p, x: apply_fn(p, x * scale), rows(), method=HALF)


def test_a_deleted_mask_of_fine_tuning():
    optax = pytest.importorskip("optax")
    mask = gone(jax.tree.map(lambda a: abs(a) > 0.5, params()))
    with pytest.raises(nt.results.ParamsError, match="keep_sparse: b was deleted"):
        nt.keep_sparse(optax.sgd(0.1), mask).init(params())


# ---- outputs that are no numbers


def lost(params, x):
    return jnp.log(-1 - abs(apply_fn(params, x)))


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
def test_outputs_that_are_no_numbers_are_told(mode):
    with pytest.warns(UserWarning, match="outputs on this batch hold NaN"):
        seen = nt.prune(params(), lost, rows(), method=HALF, mode=mode)
    assert np.isnan(seen.report.deviation)
    mask = jax.tree.map(lambda a: abs(a) > 0.5, params())
    with pytest.warns(UserWarning, match="outputs on this batch hold NaN"):
        nt.refit(params(), mask, lost, rows(), mode=mode)


@pytest.mark.parametrize(
    "method", [nt.NetTrim(deviation=0.1), nt.Wanda(nt.Sparsity(0.5, scope="network"))]
)
def test_a_search_cannot_measure_outputs_that_are_no_numbers(method):
    with pytest.raises(nt.results.MethodError, match="trained network's outputs hold"):
        nt.prune(params(), lost, rows(), method=method)
