"""A loader of batches is one batch of all their rows, in little memory."""

import functools

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from marks import only_fast, slow
from models import Loader
from scipy import stats

import nettrim_jax as nt
from nettrim_jax.calibration.batches import Source, parts
from nettrim_jax.calibration.capture import Draw, capture, gather
from nettrim_jax.calibration.model import Model
from nettrim_jax.results import BatchError

# batches of many shapes are meant here
pytestmark = pytest.mark.filterwarnings("ignore:batch. 5 shapes among")

_, PARAMS, APPLY, X, *_ = models.get("square")
METHOD = nt.NetTrim(epsilon=0.2)
prune = functools.partial(nt.prune, PARAMS, APPLY, method=METHOD)
SIZES = [5, 17, 1, 12, 20, 9]  # uneven, 64 in all


def cut(x=X, sizes=SIZES):
    return np.split(np.asarray(x), np.cumsum(sizes)[:-1])


class Tensor:
    """What another library's tensor looks like."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


def seen(batch, rows, key=0):
    """What the first layer sees, by the way that ``prune`` goes."""
    params = {"w": jnp.eye(2, dtype="float32")}
    model = Model(params, lambda p, x: x @ p["w"])
    draw = Draw((0,), rows, ((),))
    captured = (
        capture(part.network, draw, [], [params["w"], *part.batch], part.key)[0]
        for part in parts(Source(model, batch, jax.random.key(key), None))
    )
    return gather(captured, rows)[0]


@pytest.mark.parametrize("mode", only_fast(["parallel"], ["parallel", "cascade"]))
@pytest.mark.parametrize(
    "form", only_fast([iter], [iter, Loader, lambda b: (x for x in b)])
)
def test_a_loader_is_one_batch(form, mode):
    whole = prune(X, mode=mode, held_out=0.0)
    parts = prune(form(cut()), mode=mode, held_out=0.0)
    for one, two in zip(whole.report.sites, parts.report.sites, strict=True):
        assert one.shape == two.shape
        # the same rows in another order, so the same program up to the tolerance
        assert float(one.error) == pytest.approx(float(two.error), rel=5e-3)
        assert abs(int(one.nonzeros) - int(two.nonzeros)) <= 2


def test_one_batch_of_a_loader_is_that_batch():
    one, two = prune(X), prune(iter([X]))
    for a, b in zip(
        jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_tensors_of_other_libraries():
    answer = prune(Loader([Tensor(part) for part in cut()]))
    assert answer.report.sites[0].shape[1] == 64 - 6  # a tenth is held out


def test_dicts_and_tuples_of_a_loader():
    batches = [{"x": (part, None)} for part in cut()]
    answer = nt.prune(PARAMS, lambda p, b: APPLY(p, b["x"][0]), iter(batches))
    assert int(answer.report.nonzeros) < answer.report.size


def test_sites_of_a_loader():
    listing = nt.sites(PARAMS, APPLY, Loader(cut()))
    assert [site.shape[1] for site in listing.sites] == [5, 5, 5]


# ---- the reservoir


def ids(n):
    return np.stack([np.arange(n), np.ones(n)], axis=1).astype("float32")


@slow
def test_all_rows_are_kept_while_they_fit():
    rows = seen(iter(cut(ids(64))), rows=64)
    assert rows.valid.all()
    np.testing.assert_array_equal(np.sort(rows.X[0, :, 0]), np.arange(64))
    assert (np.diff(rows.priority[0]) <= 0).all()


@slow
def test_every_row_has_the_same_chance():
    # 50 uneven batches, as one batch would be drawn from
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 20, size=50)
    total, rows, repeats = int(sizes.sum()), 60, 60
    batches = cut(ids(total), sizes)
    counts = np.zeros(total)
    for key in range(repeats):
        kept = np.asarray(seen(iter(batches), rows, key).X[0, :, 0]).astype(int)
        assert len(np.unique(kept)) == rows
        counts[kept] += 1
    parts = np.split(counts, np.cumsum(sizes)[:-1])
    by_batch = np.array([part.sum() for part in parts])
    expected = sizes / total * rows * repeats
    assert stats.chisquare(by_batch, expected).pvalue > 1e-3
    # and within the batches: no place is better than another
    halves = [part[: len(part) // 2].sum() for part in parts]
    wanted = sum(len(part) // 2 for part in batches) / total * rows * repeats
    assert abs(sum(halves) - wanted) < 4 * np.sqrt(wanted)


def test_moments_are_those_of_one_batch():
    x = np.random.default_rng(1).normal(size=(640, 2)).astype("float32")
    sizes = [7] * 91 + [3]
    one, many = seen(x, 640).X[0], seen(iter(cut(x, sizes)), 640).X[0]
    np.testing.assert_allclose(one.T @ one, many.T @ many, rtol=1e-5, atol=1e-4)


@slow
@pytest.mark.parametrize("few, many", [(10, 50), pytest.param(50, 500, marks=slow)])
def test_memory_does_not_grow_with_the_stream(few, many):
    def peak(count):
        most = 0

        def batches():
            nonlocal most
            for k in range(count):
                held = sum(array.nbytes for array in jax.live_arrays())
                most = max(most, held)
                yield np.roll(np.asarray(X), k, axis=0)

        prune(batches(), rows=100)
        return most

    peak(5)  # what compilation leaves behind
    assert peak(many) <= 1.01 * peak(few) + 4096


# ---- padding


@slow
def test_weights_as_a_function_drop_padding():
    def padded(part):
        full = np.full((20, 8), 1e3, "float32")
        full[: len(part)] = part
        return {"x": full, "counts": np.arange(20) < len(part)}

    answer = nt.prune(
        PARAMS,
        lambda p, b: APPLY(p, b["x"]),
        (padded(part) for part in cut()),
        method=METHOD,
        held_out=0.0,
        rows=64,
        weights=lambda b: b["counts"],
    )
    plain = prune(iter(cut()), held_out=0.0)
    for one, two in zip(answer.report.sites, plain.report.sites, strict=True):
        assert float(one.error) == pytest.approx(float(two.error), rel=5e-3)
    with pytest.raises(BatchError, match=r"weights: shape \[20\] is no prefix"):
        prune(iter([X]), weights=lambda b: np.ones(20))


# ---- what goes wrong


def test_a_loader_that_gives_nothing():
    with pytest.raises(BatchError, match="the loader gave no batch; an iterator can"):
        prune(iter([]))
    once = iter(cut())
    prune(once)
    for mode in ("parallel", "cascade"):
        with pytest.raises(BatchError, match="gave no batch"):
            prune(once, mode=mode)
    with pytest.raises(BatchError, match="gave no batch"):
        nt.sites(PARAMS, APPLY, once)


def test_not_finite_in_one_batch_of_many():
    bad = [part.copy() for part in cut()]
    bad[4][3, 2] = np.nan
    match = "batch 4: 1 of 160 values of the array are NaN or infinite"
    with pytest.raises(BatchError, match=match):
        prune(iter(bad))


def test_batches_of_changing_structure():
    def apply_fn(p, b):
        return APPLY(p, b[0] if isinstance(b, tuple) else b)

    batches = [X[:10], (X[10:20], X[10:20])]
    with pytest.raises(BatchError, match="batch 1: its structure is .*the first was"):
        nt.prune(PARAMS, apply_fn, iter(batches))


def test_batches_that_change_the_layers():
    def apply_fn(p, x):
        return APPLY(p, x) if len(x) > 10 else jax.nn.relu(x @ p["0"]["w"])

    match = "batch 1: .* other layers than with the first"
    with pytest.raises(BatchError, match=match):
        nt.prune(PARAMS, apply_fn, iter([X[:20], X[20:25]]))


def test_a_layer_whose_inputs_are_zero_says_so():
    params = {"dead": models.normal(8, 8), "out": models.normal(8, 8, seed=1)}

    def apply_fn(p, x):
        return jax.nn.relu((0 * x) @ p["dead"]) + x @ p["out"]

    report = nt.prune(params, apply_fn, X, method=METHOD).report
    assert [int(site.live_inputs) for site in report.sites] == [0, 8]
    assert "dead: its inputs are zero on every row, so no weight was" in str(report)
    assert int(report.sites[0].nonzeros) == 0
