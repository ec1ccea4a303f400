"""Splits one number of weights, or of bytes, among layers by their curves.

The curve of a layer is the error of the network over the number of weights that this
layer keeps, or of bytes that it takes. The costs of different layers add up.
Knows numbers; knows no network.
"""

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Point(NamedTuple):
    """One answer of a layer."""

    nonzeros: int  # or bytes, where these are split
    cost: float  # squared deviation of the output with only this layer changed
    epsilon: float = math.nan  # the epsilon of the solve, if it had one


Curve = Sequence[Point]

SAMPLES = 16  # intervals of a curve between two measured points
BELOW = (0.25, 0.5, 0.7)  # lower densities to measure at, relative to the asked one
STEPS = 5  # number of steps from the asked density up to all weights
LEAST = 1.25  # least ratio of two neighbouring densities
CELLS = 2**16  # to which numbers of bytes are rounded up
DEAREST = 1e100  # costs count as no more, so that their sums are finite


class _Edge(NamedTuple):
    """A straight piece of a layer's convexified curve."""

    slope: float
    layer: int
    width: int
    start: int  # weights at its beginning


def densities(asked: float) -> list[float]:
    """The densities in (0, 1) to measure a layer at, with the asked one in them."""
    ratio = max(asked ** (-1 / STEPS), LEAST)
    above = [asked * ratio**i for i in range(1, STEPS)]
    below = [asked * part for part in BELOW]
    return [*below, asked, *(d for d in above if d * ratio**0.5 < 1)]


def evenly(sizes: Sequence[int], total: int) -> list[int]:
    """The same share of each size, ``total`` in all, rounded by largest remainder."""
    whole = max(sum(sizes), 1)
    counts = [size * total // whole for size in sizes]
    rest = [size * total % whole for size in sizes]
    order = sorted(range(len(sizes)), key=lambda k: (-rest[k], k))
    for k in order[: total - sum(counts)]:
        counts[k] += 1
    return counts


def between(curve: Curve, count: int) -> float:
    r"""The cost at any number of weights within a curve.

    It is linear in the logarithms of both, or in that of the number alone where a cost
    is not positive.
    """
    counts = [p.nonzeros for p in curve]
    i = min(max(bisect.bisect_left(counts, count), 1), len(curve) - 1)
    (n0, c0, _), (n1, c1, _) = curve[i - 1], curve[i]
    if count in (n0, n1):
        return c0 if count == n0 else c1
    # zero weights have no logarithm
    a, b, at = (math.log(max(n, 0.5)) for n in (n0, n1, count))
    part = (at - a) / (b - a)
    if c0 > 0 and c1 > 0:
        return math.exp(math.log(c0) * (1 - part) + math.log(c1) * part)
    return c0 * (1 - part) + c1 * part


def split(curves: Sequence[Curve], total: int) -> list[int]:
    r"""The number of weights that each layer keeps.

    .. math::
        \min_n \; \sum_k c_k(n_k) \quad\text{s.t.}\quad \sum_k n_k = \text{total}

    Curves are interpolated (:func:`between`) and replaced by their lower convex hulls.
    Then the steepest pieces of all layers are taken first, down to one slope, which is
    the multiplier of the sum. (Everett, 1963; Shoham and Gersho, 1988.) The last piece
    is taken in part. The curve may be above its hull there, so that layer is also tried
    at both ends of the piece, where the others share the rest.

    Args:
      curves: one curve per layer, with increasing numbers of weights.
      total: the sum, between the sums of the curves' first and last numbers.

    Returns:
      The numbers, whose sum is ``total``.
    """
    counts, last = _fill(curves, total)
    if last is None:
        return counts
    tried = [counts]
    for end in (last.start, last.start + last.width):
        point = Point(end, between(curves[last.layer], end))
        fixed = [[point] if k == last.layer else c for k, c in enumerate(curves)]
        least, most = (sum(c[i].nonzeros for c in fixed) for i in (0, -1))
        if least <= total <= most:
            tried.append(_fill(fixed, total)[0])
    return min(tried, key=lambda counts: cost(curves, counts))


def cost(curves: Sequence[Curve], counts: Sequence[int]) -> float:
    """The cost of these numbers together."""
    return sum(
        c[0].cost if len(c) == 1 else between(c, n)
        for c, n in zip(curves, counts, strict=True)
    )


def _fill(curves: Sequence[Curve], total: int) -> tuple[list[int], _Edge | None]:
    """The best numbers by the hulls, and the piece that is taken in part."""
    edges, counts = [], []
    for k, curve in enumerate(curves):
        points = _sampled(curve)
        vertices = [points[i] for i in hull(points)]
        counts.append(vertices[0].nonzeros)
        for (n0, c0, _), (n1, c1, _) in itertools.pairwise(vertices):
            edges.append(_Edge((c1 - c0) / (n1 - n0), k, n1 - n0, n0))
    left = total - sum(counts)
    for edge in sorted(edges):
        if left <= 0:
            break
        counts[edge.layer] += min(edge.width, left)
        if edge.width > left:
            return counts, edge
        left -= edge.width
    return counts, None


def _sampled(curve: Curve) -> list[Point]:
    counts = [curve[-1].nonzeros]
    for n0, n1 in itertools.pairwise(p.nonzeros for p in curve):
        ratio = n1 / max(n0, 0.5)
        steps = (max(n0, 0.5) * ratio ** (i / SAMPLES) for i in range(1, SAMPLES))
        counts += [n0, *(min(max(round(n), n0), n1) for n in steps)]
    if len(curve) == 1:
        return list(curve)
    return [Point(n, between(curve, n)) for n in sorted(set(counts))]


def hull(points: Curve) -> list[int]:
    """Positions of the lower convex hull's vertices, from fewest weights to most.

    Of equal answers the last one counts.
    """
    out: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (*points[i][:2], -i)):
        n, c, _ = points[i]
        if out and points[out[-1]].nonzeros == n:
            continue
        while len(out) > 1:
            (n0, c0, _), (n1, c1, _) = (points[k] for k in out[-2:])
            if (c1 - c0) * (n - n0) < (c - c0) * (n1 - n0):
                break
            out.pop()
        out.append(i)
    return out


def within(curves: Sequence[Curve], most: int) -> tuple[int, ...] | None:
    r"""A position on each curve, with numbers of ``most`` together at most.

    .. math::
        \min_i \; \sum_k c_k(i_k) \quad\text{s.t.}\quad \sum_k n_k(i_k) \le \text{most}

    exactly, but for numbers above the least that are rounded up to a part in 65,536 of
    the room, by adding one layer after another to the best of those before. A hull
    would leave as much of the room as the largest layer takes for its next point, which
    may be a tenth of all. Of equal costs the first position of a layer counts.

    Args:
      curves: one curve per layer, in any order.
      most: the largest sum of the numbers.

    Returns:
      The positions; None if there are no such ones.
    """
    lows = [min(p.nonzeros for p in curve) for curve in curves]
    room = most - sum(lows)
    if room < 0:
        return None
    unit = max(-(-room // CELLS), 1)
    cells = room // unit
    best = np.zeros(cells + 1)  # least cost of the layers so far, by their room
    needs, picks = [], []
    for curve, low in zip(curves, lows, strict=True):
        need = [-(-(p.nonzeros - low) // unit) for p in curve]
        costs = np.full((len(curve), cells + 1), math.inf)
        for i, n in enumerate(need):
            if n <= cells:
                costs[i, n:] = best[: cells + 1 - n] + min(curve[i].cost, DEAREST)
        picks.append(costs.argmin(0).astype(np.int16))
        needs.append(need)
        best = costs.min(0)
    out, left = [], cells
    for need, pick in zip(reversed(needs), reversed(picks), strict=True):
        out.append(int(pick[left]))
        left -= need[out[-1]]
    return tuple(reversed(out))
