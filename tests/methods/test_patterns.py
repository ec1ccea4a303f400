"""Every pattern keeps exactly what it says, and the best of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.methods import counts, ranking
from nettrim_jax.results import MethodError

shapes = st.tuples(st.integers(1, 4), st.integers(1, 13), st.integers(1, 9))
levels = st.floats(0, 1)
QUICK = settings(max_examples=10, deadline=None, derandomize=True, database=None)


def scores(shape, seed, ties):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4, shape) if ties else rng.uniform(size=shape)
    return values.astype("float64")


def best(score, count):
    """The ``count`` highest of a vector, the first among equals."""
    kept = np.zeros(score.size, bool)
    kept[np.argsort(-score.ravel(), kind="stable")[:count]] = True
    return kept.reshape(score.shape)


def kept(pattern, score):
    """What the pattern keeps of the scores, as arrays of JAX and of NumPy alike."""
    keep = np.asarray(jax.jit(pattern.keep)(jnp.asarray(score)))
    np.testing.assert_array_equal(pattern.keep(score), keep)
    return keep


cases = given(shapes, levels, st.integers(0, 99), st.booleans())


@QUICK
@cases
def test_sparsity_of_a_layer(shape, level, seed, ties):
    score = scores(shape, seed, ties)
    want = best(score, score.size - round(level * score.size))
    np.testing.assert_array_equal(kept(nt.Sparsity(level), score), want)
    assert nt.Sparsity(level).nonzeros(shape) == want.sum()


@QUICK
@cases
def test_sparsity_of_every_column(shape, level, seed, ties):
    score = scores(shape, seed, ties)
    pattern = nt.Sparsity(level, scope="column")
    got = kept(pattern, score)
    for lane in range(shape[0]):
        for unit in range(shape[2]):
            want = best(score[lane, :, unit], shape[1] - round(level * shape[1]))
            np.testing.assert_array_equal(got[lane, :, unit], want)
    assert pattern.nonzeros(shape) == got.sum()


@QUICK
@given(shapes, st.integers(1, 5), st.data(), st.integers(0, 99), st.booleans())
def test_n_of_m(shape, m, data, seed, ties):
    n = data.draw(st.integers(0, m))
    score = scores(shape, seed, ties)
    got = kept(nt.NM(n, m, pad=True), score)
    for lane in range(shape[0]):
        for unit in range(shape[2]):
            for start in range(0, shape[1], m):
                group = score[lane, start : start + m, unit]
                want = best(group, min(n, len(group)))
                np.testing.assert_array_equal(got[lane, start : start + m, unit], want)


@QUICK
@given(shapes, levels, st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_blocks(shape, level, r, c, seed):
    score = scores(shape, seed, False)
    got = kept(nt.Blocks(level, (r, c), pad=True), score)
    places = [
        (lane, slice(i, i + r), slice(j, j + c))
        for lane in range(shape[0])
        for i in range(0, shape[1], r)
        for j in range(0, shape[2], c)
    ]
    sums = np.array([score[place].sum() for place in places])
    want = best(sums, len(sums) - round(level * len(sums)))
    for place, whole in zip(places, want, strict=True):
        assert (got[place] == whole).all()


@slow
@QUICK
@cases
def test_neurons_and_inputs(shape, level, seed, ties):
    score = scores(shape, seed, ties)
    for pattern, axis in ((nt.Neurons(level), 1), (nt.Inputs(level), 2)):
        sums = score.sum(axis=axis, keepdims=True)
        want = best(sums, sums.size - round(level * sums.size))
        got = kept(pattern, score)
        np.testing.assert_array_equal(got, np.broadcast_to(want, shape))


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: nt.Sparsity(90), r"Sparsity\(90\): expected a share in \[0, 1\]"),
        (lambda: nt.Sparsity("0.9"), "expected a share"),
        (lambda: nt.Sparsity(0.9, scope="row"), "scope='row'.*expected one of"),
        (lambda: nt.NM(4, 2), r"NM\(4, 2\): expected integers n and m"),
        (lambda: nt.NM(0.5, 2), "expected integers"),
        (lambda: nt.Blocks(0.5, 4), "inputs and units of a block"),
        (lambda: nt.Blocks(0.5, (4, 0)), "at least 1"),
        (lambda: nt.Blocks(-0.5, (4, 1)), "expected a share"),
        (lambda: nt.Neurons(2), "expected a share"),
        (lambda: nt.Inputs(True), "expected a share"),
        (lambda: nt.NM(2, 4).check((1, 6, 3)), "4 does not divide the 6 inputs.*pad"),
        (lambda: nt.Blocks(0.5, (2, 4)).check((1, 6, 3)), "divide the 3 units"),
    ],
)
def test_refusals(make, says):
    with pytest.raises(MethodError, match=says):
        make()


def test_patterns_are_hashable_configuration():
    patterns = [
        nt.Sparsity(0.9),
        nt.NM(2, 4),
        nt.Blocks(0.5, (2, 2)),
        nt.Neurons(0.5),
        nt.Inputs(0.5),
    ]
    assert len({*patterns, *map(dataclasses.replace, patterns)}) == len(patterns)


def as_counts(level):
    """Patterns of this level."""
    return (
        nt.Sparsity(level),
        nt.Sparsity(level, scope="column"),
        nt.NM(round(4 * (1 - level)), 4, pad=True),
        nt.Blocks(level, (2, 3), pad=True),
        nt.Neurons(level),
        nt.Inputs(level),
    )


@pytest.mark.parametrize("i", only_fast([0, 3], range(6)))
def test_a_pattern_with_its_number_as_an_array_keeps_the_same(i):
    keep = jax.jit(jax.vmap(lambda one, score: one.keep(score)))
    score = scores((4, 7, 5), 0, ties=True)
    for level in (0.0, 0.3, 0.5, 0.75, 1.0):  # by one program
        pattern = as_counts(level)[i]
        counted = counts.counted(pattern, score.shape, layers=2)
        found = keep(counted, jnp.asarray(score).reshape(2, 2, 7, 5))
        for mine, one in zip(found, np.split(score, 2), strict=True):
            np.testing.assert_array_equal(mine, kept(pattern, one), str(pattern))
    assert keep._cache_size() == 1


@pytest.mark.parametrize("i", only_fast([0, 3], range(6)))
def test_numpy_ranks_as_jax_does(i):
    score = scores((2, 24, 30), 0, ties=True).astype("float32")
    score[0, 3, 4:9], score[1, 5, :7], score[1, 6, 6] = np.nan, -0.0, np.inf
    for level in (0.25, 0.5, 0.9):
        kept(as_counts(level)[i], score)


def test_patterns_of_ones_own_and_of_the_network_stay_as_they_are():
    class Own(nt.Sparsity):
        pass

    for pattern in (Own(0.5), nt.Sparsity(0.5, scope="network")):
        assert counts.counted(pattern, (2, 3, 4), layers=1) is pattern


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 60, 70)])
def test_about_the_highest_are_marked_in_fewer_passes(shape, level, ties):
    # not zero: zeros are marked all or none
    score = (1 + scores(shape, 0, ties).astype("float32")) ** 2
    count = round(level * score.size)
    mark = np.asarray(jax.jit(ranking.about_highest)(score, count, 1 / 512))
    # equal scores are ranked by their place only as far as float32 tells them apart
    room = count / 512 + (40 if ties else 1)
    assert abs(int(mark.sum()) - count) <= room or (count == score.size and ties)
    if 0 < count < score.size and not ties:
        least, most = score[mark].min(), score[~mark].max()
        assert least >= most * (1 - 2 * ranking.RAMP)
    assert mark.any() == (count > 0)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("ties", [False, True])
def test_the_highest_are_those_of_a_stable_sort(axis, ties):
    score = scores((23, 31), 0, ties).astype("float32") - 3
    odd = [np.nan, np.inf, -np.inf, -0.0, 0.0, np.inf, np.finfo("float32").tiny]
    score.ravel()[:: score.size // len(odd)][: len(odd)] = odd
    sortable = np.where(np.isnan(score), -np.inf, score)
    size, call = score.shape[axis], jax.jit(ranking.highest, static_argnums=2)
    for count in (-2, 0, 1, 2, size // 2, size - 1, size, size + 3):
        rank = np.argsort(np.argsort(-sortable, axis, kind="stable"), axis)
        np.testing.assert_array_equal(call(score, count, axis), rank < count)
