"""The split of a number of bytes: against all choices, and with files that differ."""

import itertools
import math
import types

import numpy as np
import pytest

from nettrim_jax.allocation import curves as splitting
from nettrim_jax.allocation import widths
from nettrim_jax.allocation.curves import Point
from nettrim_jax.allocation.widths import Curves, Joined, Tried


def random_curves(rng, layers=4, points=4, most=60):
    return [
        [
            Point(int(n), float(c))
            for n, c in zip(
                rng.integers(-most, most, points), rng.random(points), strict=True
            )
        ]
        for _ in range(layers)
    ]


def total(curves, choice):
    points = [curve[i] for curve, i in zip(curves, choice, strict=True)]
    return sum(p.nonzeros for p in points), sum(p.cost for p in points)


def every(curves):
    return itertools.product(*(range(len(curve)) for curve in curves))


@pytest.mark.parametrize("seed", range(5))
def test_no_other_choice_within_the_bytes_moves_less(seed):
    rng = np.random.default_rng(seed)
    curves = random_curves(rng)
    found = [total(curves, choice) for choice in every(curves)]
    before = math.inf
    for most in range(min(n for n, _ in found), max(n for n, _ in found) + 9, 7):
        size, cost = total(curves, splitting.within(curves, most))
        assert size <= most
        assert cost == pytest.approx(min(c for n, c in found if n <= most))
        assert cost <= before + 1e-12  # more bytes never move the output more
        before = cost
    assert splitting.within(curves, min(n for n, _ in found) - 1) is None


def test_large_numbers_are_rounded_up_to_small_parts_of_the_room():
    rng = np.random.default_rng(0)
    curves = random_curves(rng, most=10**9)
    found = [total(curves, choice) for choice in every(curves)]
    most = int(np.median([n for n, _ in found]))
    size, cost = total(curves, splitting.within(curves, most))
    low = min(n for n, _ in found)
    tight = most - 4 * (most - low) // splitting.CELLS
    assert size <= most
    assert cost <= min(c for n, c in found if n <= tight) + 1e-12


def test_of_equal_costs_the_first_position_counts():
    curves = [[Point(9, 0.0), Point(5, 0.0), Point(1, 0.5)]] * 2
    assert splitting.within(curves, 100) == (0, 0)
    assert splitting.within(curves, 14) in {(0, 1), (1, 0)}
    # a network that is not finite is dearer than all others
    curves = [[Point(9, 0.0), Point(1, math.inf)], [Point(9, 0.0), Point(1, 0.1)]]
    assert splitting.within(curves, 10) == (0, 1)
    assert splitting.within(curves, 2) == (1, 1)


def site(leaf, bias=None):
    return types.SimpleNamespace(leaf=leaf, bias=None if bias is None else (bias, None))


def test_sites_that_share_an_array_are_joined():
    sites = [site(0, 1), site(2), site(3, 1), site(4, 5), site(2, 6), site(3)]
    network = types.SimpleNamespace(sites=sites)
    parts = widths.joined_of(network, dict.fromkeys(range(6)))
    found = {frozenset(part.sites): set(part.leaves) for part in parts}
    assert found == {
        frozenset({0, 2, 5}): {0, 1, 3},
        frozenset({1, 4}): {2, 6},
        frozenset({3}): {4, 5},
    }


# ---- networks whose files are larger or smaller than their layers alone say

COSTS = [4.0**-n for n in (3, 2, 1)]
CURVES = Curves(
    [Joined((k,), (k,)) for k in range(3)],
    [
        [Point(n, weight * c) for n, c in zip(sizes, COSTS, strict=True)]
        for sizes, weight in [((60, 40, 20), 1.0), ((15, 10, 5), 9.0), ((6, 4, 2), 0.1)]
    ],
    [dict.fromkeys(range(3), way) for way in range(3)],
    100,
)


def settle(most, off, costs=None):
    tried = []

    def run(choice):
        tried.append(choice)
        cost = total(CURVES.curves, choice)[1] if costs is None else costs(choice)
        return Tried(CURVES.size(choice) + off(choice), cost, choice)

    return widths.settled(CURVES, most, run), tried


@pytest.mark.parametrize("off", [0, 7, -7])
def test_no_file_is_larger_than_the_budget(off):
    for most in range(127 + off, 200, 5):
        found, tried = settle(most, lambda choice: off)
        assert found.size <= most
        assert len(tried) <= 5
        fitting = [c for c in every(CURVES.curves) if CURVES.size(c) + off <= most]
        least = min(total(CURVES.curves, c)[1] for c in fitting)
        assert found.cost == pytest.approx(least)


def test_files_that_differ_from_choice_to_choice():
    rng = np.random.default_rng(0)
    table = {choice: int(rng.integers(-9, 9)) for choice in every(CURVES.curves)}
    for most in range(140, 190):
        found, tried = settle(most, table.get)
        assert found.size <= most and len(tried) <= 2 * widths.TURNS


def test_the_same_way_for_all_wins_where_it_moves_less():
    # in the whole network the layers do not add up
    found, tried = settle(175, lambda choice: 0, costs=lambda c: len(set(c)))
    assert found.done == (1, 1, 1)
    assert len(tried) > 1


def test_of_too_few_bytes_the_smallest_file_comes_back():
    assert settle(126, lambda choice: 0)[0].size == 127
    assert settle(128, lambda choice: 3)[0].size == 130
    assert settle(128, lambda choice: -3)[0].size <= 128


def test_a_movement_that_is_no_number_is_worst():
    check = types.SimpleNamespace(cost=lambda leaves, beside: math.nan, trained=[])
    assert CURVES._replace(check=check).moved([]) == math.inf


def test_methods_are_those_of_the_choice():
    assert CURVES.methods((2, 0, 1)) == {0: 2, 1: 0, 2: 1}
