"""Loaders without an end, batches that are counted, and batches of many shapes."""

import itertools
import re
import warnings

import jax
import models
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.calibration.batches import stream
from nettrim_jax.results import MethodError

_, PARAMS, APPLY, X, *_ = models.get("square")
HALF = nt.Magnitude(nt.Sparsity(0.5))
WANDA = nt.Wanda(nt.Sparsity(0.5))
BATCHES = [np.asarray(X[k : k + 16]) for k in range(0, 64, 16)]
METHODS = {
    "wanda": {"method": WANDA},
    "cascade": {"method": WANDA, "mode": "cascade"},
    "budget": {"method": nt.NetTrim(deviation=0.3)},
    "share": {"method": nt.Wanda(nt.Sparsity(0.5, scope="network"))},
}


def same(one, other):
    trees = (jax.tree.leaves((a.params, a.mask)) for a in (one, other))
    for a, b in zip(*trees, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", only_fast(["wanda", "cascade"], METHODS))
def test_so_many_batches_of_a_loader_without_an_end(name):
    """They are those of a loader that ends, and the next one is not taken."""
    count = 8 if name == "budget" else 3
    endless = itertools.cycle(BATCHES)
    pruned = nt.prune(PARAMS, APPLY, endless, batches=count, **METHODS[name])
    assert next(endless) is BATCHES[count % 4]
    few = itertools.islice(itertools.cycle(BATCHES), count)
    same(pruned, nt.prune(PARAMS, APPLY, few, **METHODS[name]))


@slow
def test_a_refit_of_so_many_batches():
    mask = nt.prune(PARAMS, APPLY, X, method=HALF).mask
    endless = itertools.cycle(BATCHES)
    fitted = nt.refit(PARAMS, mask, APPLY, endless, batches=np.int64(2))
    assert next(endless) is BATCHES[2]
    same(fitted, nt.refit(PARAMS, mask, APPLY, iter(BATCHES[:2])))


def test_more_batches_than_there_are():
    settings = {"method": WANDA}
    wanted = nt.prune(PARAMS, APPLY, iter(BATCHES), **settings)
    same(nt.prune(PARAMS, APPLY, iter(BATCHES), batches=9, **settings), wanted)
    # one batch is no loader, and is taken whole
    whole = nt.prune(PARAMS, APPLY, X, **settings)
    same(nt.prune(PARAMS, APPLY, X, batches=1, **settings), whole)


@pytest.mark.parametrize("count", [0, -1, True, 2.5, "3", float("inf")])
def test_a_number_of_batches_that_is_none(count):
    text = re.escape(f"(batches={count!r}): expected an integer of at least 1, or None")
    with pytest.raises(MethodError, match=f"prune{text}"):
        nt.prune(PARAMS, APPLY, iter(BATCHES), batches=count)
    with pytest.raises(MethodError, match=f"refit{text}"):
        nt.refit(PARAMS, PARAMS, APPLY, iter(BATCHES), batches=count)


# ---- the count


class Enough(Exception):
    """The user has waited for long enough."""


@pytest.mark.parametrize("name", METHODS)
def test_a_loader_without_an_end_is_counted(name):
    """So whoever waits sees why, wherever the batches are read."""
    seen = []

    def progress(done, total, what):
        assert 0 <= done <= total
        seen.append(what)
        if what == "batch 20":
            raise Enough

    endless = itertools.cycle(BATCHES)
    with pytest.raises(Enough):
        nt.prune(PARAMS, APPLY, endless, progress=progress, **METHODS[name])
    counts = [what for what in seen if what.startswith("batch")]
    assert counts == [f"batch {k}" for k in range(1, 21)]


@pytest.mark.parametrize("name", only_fast(["wanda"], METHODS))
def test_each_batch_is_counted_once(name):
    seen = []
    nt.prune(
        PARAMS,
        APPLY,
        iter(BATCHES * 2),
        progress=lambda done, total, what: seen.append(what),
        **METHODS[name],
    )
    counts = [what for what in seen if what.startswith("batch")]
    assert counts == [f"batch {k}" for k in range(1, 9)]


@slow
def test_the_bar_counts(capsys):
    mask = nt.prune(PARAMS, APPLY, iter(BATCHES), method=HALF, progress=True).mask
    shown = capsys.readouterr().err
    assert all(f"batch {k}" in shown for k in (1, 2, 3, 4)) and "batch 5" not in shown
    assert shown.count("\n") == 0 or shown.endswith("\n")
    nt.refit(PARAMS, mask, APPLY, iter(BATCHES), progress=True)
    assert "batch 4" in capsys.readouterr().err
    # one batch has no number
    nt.prune(PARAMS, APPLY, X, method=HALF, progress=True)
    assert "batch" not in capsys.readouterr().err


@slow
def test_nothing_is_shown_while_jax_traces(capsys):
    @jax.jit
    def prune(params):
        settings = {"method": HALF, "progress": True, "on_failure": "keep"}
        return nt.prune(params, APPLY, iter(BATCHES), **settings).params

    prune(PARAMS)
    assert capsys.readouterr().err == ""


# ---- many shapes


def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [one for one in caught if "shapes" in str(one.message)]


SIZES = [8, 8, 7, 8, 6, 5, 8, 4, 3, 4]


def test_the_fifth_shape_is_told_of():
    """Before the network is compiled for it; with what to do; and then no more."""
    batches = (np.asarray(X[:n]) for n in SIZES)
    count = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in stream(batches, None, lambda n: None):
            count += 1
            assert len(caught) == (count >= 8)
    assert count == len(SIZES) and caught[0].filename == __file__


@slow
@pytest.mark.parametrize("name", METHODS)
def test_batches_of_many_shapes(name):
    """One warning in all, at the user's line, whichever way the rows are dealt out."""
    batches = [np.asarray(X[:n]) for n in SIZES]
    call = lambda b: nt.prune(PARAMS, APPLY, iter(b), **METHODS[name])  # noqa: E731
    [warning] = told(lambda: call(batches))
    text = str(warning.message)
    assert text.startswith("batch: 5 shapes among the first 8 batches of the loader")
    assert "Pad batches to one shape" in text and "weights=, with 0 for padding" in text
    assert warning.filename == __file__


@slow
def test_few_shapes_are_fine():
    """A loader's last batch may be shorter; what is not read does not count."""
    batches = [np.asarray(X[:n]) for n in (8, 8, 8, 5)]
    assert not told(lambda: nt.prune(PARAMS, APPLY, iter(batches), method=HALF))
    batches = [np.asarray(X[:n]) for n in range(1, 20)]
    call = lambda: nt.prune(PARAMS, APPLY, iter(batches), method=HALF, batches=4)  # noqa: E731
    assert not told(call)


@slow
def test_a_refit_tells_of_many_shapes_too():
    mask = nt.prune(PARAMS, APPLY, X, method=HALF).mask
    batches = [np.asarray(X[:n]) for n in (8, 7, 6, 5, 4)]
    [warning] = told(lambda: nt.refit(PARAMS, mask, APPLY, iter(batches)))
    assert warning.filename == __file__


@slow
def test_padding_as_the_warning_says():
    """Rows of weight zero make batches of one shape, and change nothing."""
    sizes = [8, 7, 6, 5, 4, 3]
    batches = [np.asarray(X[:n]) for n in sizes]
    padded = [
        np.pad(b, ((0, 8 - len(b)), (0, 0)), constant_values=1e3) for b in batches
    ]
    batches = [(x, np.arange(8) < n) for x, n in zip(padded, sizes, strict=True)]
    settings = {"method": WANDA, "held_out": 0.0}
    apply_fn = lambda p, b: APPLY(p, b[0])  # noqa: E731
    weights = lambda b: b[1]  # noqa: E731
    padded = nt.prune(PARAMS, apply_fn, iter(batches), weights=weights, **settings)
    rows = np.concatenate([x[keep] for x, keep in batches])
    same(padded, nt.prune(PARAMS, APPLY, rows, **settings))
