"""``Joint``: its losses are those of least squares, its choice near the best of all."""

import itertools

import numpy as np
import pytest

import nettrim_jax as nt
from nettrim_jax.methods.around import Around, Maker, Reader, places, totals

RIDGE = 1e-6


def around(unit, outputs=(3,), bias=True, seed=0, feels=False, rows=200):
    """Units with readers of correlated inputs."""
    rng = np.random.default_rng(seed)
    unit = np.asarray(unit)
    readers = []
    for d_out in outputs:
        X = rng.normal(size=(rows, len(unit))) @ rng.normal(size=(len(unit),) * 2)
        X = np.maximum(X + rng.normal(size=len(unit)), 0)
        A = np.concatenate([X, np.ones((rows, 1))], 1) if bias else X
        M = rng.normal(size=(d_out, d_out)) if feels else None
        M = None if M is None else M @ M.T
        W = rng.normal(size=(len(unit), d_out))
        readers.append(Reader(unit, W, X, A.T @ A / rows, M))
    return Around("units", int(unit.max()) + 1, (), tuple(readers))


def loss(given, removed, by):
    """The least loss without some units, by least squares on what is left."""
    total = 0.0
    for one in given.readers:
        H = one.moments + by.ridge * np.trace(one.moments) / len(one.moments) * np.eye(
            len(one.moments)
        )
        W = np.concatenate([one.W, np.zeros((len(H) - len(one.W), one.W.shape[1]))])
        gone = np.isin(np.append(one.unit, [-1] * (len(H) - len(one.W))), removed)
        left = np.flatnonzero(~gone)
        new = np.zeros_like(W)
        new[left] = np.linalg.solve(H[np.ix_(left, left)], H[left] @ W)
        M = np.eye(W.shape[1])
        if one.feels is not None:
            plain = np.trace(one.feels) / len(one.feels) * np.eye(len(one.feels))
            M = by.downstream * one.feels + (1 - by.downstream) * plain
        total += np.trace((new - W).T @ H @ (new - W) @ M)
    return total


CASES = {
    "one input each": dict(unit=range(6)),
    "several places": dict(unit=[0, 1, 2, 3] * 3),
    "as many as it comes": dict(unit=[0, 0, 1, 2, 2, 2, 3, -1]),
    "two readers": dict(unit=range(6), outputs=(2, 4)),
    "no bias": dict(unit=range(6), bias=False),
    "what the output feels": dict(unit=range(6), feels=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_losses_are_those_of_least_squares(case):
    given, by = around(**case), nt.Joint(ridge=RIDGE)
    alone = [loss(given, [u], by) for u in range(given.count)]
    np.testing.assert_allclose(by.scores(given), alone, rtol=1e-6)
    order, added = by.path(given)
    for k in range(1, given.count):
        np.testing.assert_allclose(
            added[:k].sum(), loss(given, order[:k], by), rtol=1e-5
        )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_near_the_best_of_all(case, seed):
    given, by = around(**case, seed=seed), nt.Joint(ridge=RIDGE)
    for count in range(1, given.count):
        every = itertools.combinations(range(given.count), count)
        best = min(loss(given, removed, by) for removed in every)
        chosen = by.choose(given, count)
        assert len(set(chosen)) == count
        greedy = loss(given, by.path(given)[0][:count], by)
        mine = loss(given, chosen, by)
        assert best * (1 - 1e-6) <= mine <= greedy * (1 + 1e-6)
        assert mine <= 1.5 * best
        # no exchange of two units would help
        for out, back in itertools.product(
            np.setdiff1d(np.arange(given.count), chosen), chosen
        ):
            other = [*np.setdiff1d(chosen, [back]), out]
            if back == _best_back(given, chosen, by):
                assert loss(given, other, by) >= mine * (1 - 1e-4)


def _best_back(given, chosen, by):
    """Of the removed units, the one that would save most."""
    return min(chosen, key=lambda u: loss(given, np.setdiff1d(chosen, [u]), by))


def test_units_that_no_layer_sums_over_are_judged_by_their_makers():
    rng = np.random.default_rng(0)
    P = rng.normal(size=(50, 5)) * np.array([1, 0.1, 2, 0.2, 3])
    maker = Maker(np.arange(5), rng.normal(size=(4, 5)), P, None)
    given = Around("dimensions", 5, (maker,), ())
    assert set(nt.Joint().choose(given, 2)) == {1, 3}
    np.testing.assert_allclose(nt.Joint().scores(given), (P**2).mean(0))


def test_places_and_totals_of_units():
    unit = np.array([2, -1, 0, 2, 2])
    assert places(unit, 3).tolist() == [[2, -1, 0], [-1, -1, 3], [-1, -1, 4]]
    assert totals(np.arange(5.0), unit, 3).tolist() == [2, 0, 7]
