"""Chooses among the measured answers of all layers, for a budget of the network.

Each layer has a curve: the movement of the network's output over the number of weights
left in this layer. All functions are pure.
Knows numbers and the functions given to it; knows no model and no solver.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nettrim_jax.allocation.curves import Curve, hull

Choice = tuple[int, ...]  # per layer, a position on its curve

# one-sided 99 % quantiles of Student's t, by degrees of freedom
QUANTILES = (math.inf, 31.821, 6.965, 4.541, 3.747, 3.365, 3.143, 2.998, 2.896)
QUANTILES += (2.821, 2.764, 2.718, 2.681, 2.650, 2.624, 2.602)
CLOSE = 1.02  # ratio of two factors that are not worth another look
LOOKS = 32  # largest number of networks measured before bisection starts


class Reading(NamedTuple):
    """One network measured on the rows that steer."""

    value: float
    bound: float  # exceeded on as many unseen rows one time in a hundred


def deviation(moved: Sequence[float], size: Sequence[float], share: float) -> Reading:
    r"""The relative deviation over all folds, and a bound for other rows.

    .. math::
        r = \frac{\sum_f m_f}{\sum_f s_f}, \qquad
        \mathrm{se}^2 = \frac{F}{F - 1} \frac{\sum_f (m_f - r s_f)^2}
        {(\sum_f s_f)^2}, \qquad
        \text{bound}^2 = r + q_{F-1} \, \mathrm{se} \sqrt{1 + \text{share}}

    Args:
      moved: per fold, the squared change of the output.
      size: per fold, the squared trained output.
      share: ratio of the rows that steer to the rows that the bound is for.

    Returns:
      :math:`\sqrt r` and the bound.
    """
    m, s = np.asarray(moved, float), np.asarray(size, float)
    total, off = s.sum(), m.sum()
    if not np.isfinite(off) or (total == 0 and off > 0):
        return Reading(math.inf, math.inf)
    ratio = off / total if off > 0 else 0.0
    error = _error((m - ratio * s) / total * len(m) if total else 0 * m)
    bound = ratio + _quantile(len(m)) * error * math.sqrt(1 + share) if error else ratio
    return Reading(math.sqrt(ratio), math.sqrt(bound))


def drop(before: Sequence[float], after: Sequence[float], share: float) -> Reading:
    """The mean fall of a metric over all folds, and a bound for other rows."""
    fall = np.asarray(before, float) - np.asarray(after, float)
    if not np.isfinite(fall).all():
        return Reading(math.inf, math.inf)
    mean, error = float(fall.mean()), _error(fall)
    margin = _quantile(len(fall)) * error * math.sqrt(1 + share) if error else 0.0
    return Reading(mean, mean + margin)


def halving(reading: Reading, measure: str) -> float:
    r"""The factor of the number of rows at which the margin would be half.

    .. math::
        \text{bound} - \text{value} \to \tfrac12 (\text{bound} - \text{value})
        \quad\text{as}\quad \mathrm{se} \to \mathrm{se} / \sqrt{\text{factor}}

    It is 4 for a drop, whose margin is proportional to the standard error, and up to 16
    for a deviation, whose square has that error. NaN if there is no margin.
    """
    margin = reading.bound - reading.value
    if not (math.isfinite(margin) and margin > 0):
        return math.nan
    if measure == "drop":
        return 4.0
    half = reading.value + margin / 2
    whole, part = (end**2 - reading.value**2 for end in (reading.bound, half))
    return (whole / part) ** 2


def _error(each: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(np.std(each, ddof=1) / math.sqrt(len(each))) if len(each) > 1 else 0.0


def _quantile(count: int) -> float:
    return QUANTILES[min(count - 1, len(QUANTILES) - 1)]


def chain(curves: Sequence[Curve]) -> list[Choice]:
    r"""Every choice that is the best at some price of deviation, infinite to zero.

    .. math::
        \min_i \; \sum_k n_k(i_k) + \lambda \sum_k c_k(i_k), \qquad
        \lambda = \infty, \dots, 0

    with :math:`n` the number of weights left and :math:`c` the cost of a point. Each
    choice is the best at its own cost: no other one costs as little and leaves fewer
    weights. Neighbours differ in one layer, by one vertex of its lower convex hull.
    (Everett, 1963; Shoham and Gersho, 1988.)
    """
    moves = []
    for k, curve in enumerate(curves):
        # the hull is of the trained layer, the first point, and those of fewer weights
        fewer = [i for i, p in enumerate(curve) if p.nonzeros < curve[0].nonzeros]
        some = [0, *fewer]
        vertices = [some[i] for i in reversed(hull([curve[i] for i in some]))]
        for old, new in zip(vertices, vertices[1:], strict=False):
            price = curve[new].cost - curve[old].cost
            gain = curve[old].nonzeros - curve[new].nonzeros
            moves.append((gain / price if price > 0 else math.inf, k, new))
    moves.sort(key=lambda move: -move[0])  # stable: the moves of a layer stay in order
    choices = [(0,) * len(curves)]
    for _, k, new in moves:
        last = choices[-1]
        choices.append((*last[:k], new, *last[k + 1 :]))
    return choices


def climb(count: int, fits: Callable[[int], bool]) -> int:
    """The last network in a list before the first one that does not fit.

    It tests evenly spaced networks from the first one on, and bisects the interval in
    which one failed. So it takes no network that fits by chance after one that does
    not.
    """
    if count <= 1:
        return 0
    stride, good, bad = -(-(count - 1) // LOOKS), 0, None
    while good < count - 1:
        at = min(good + stride, count - 1)
        if not fits(at):
            bad = at
            break
        good = at
    while bad is not None and bad - good > 1:
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def between(curve: Curve, at: int, least: float) -> tuple[float, float]:
    """Two epsilons halfway between a point and its neighbours, by ratio.

    Below the smallest epsilon of a curve they halve it; none is below ``least``.
    """
    known = sorted(p.epsilon for p in curve if p.epsilon > 0)
    here = curve[at].epsilon
    if not known:
        return least, least
    if here == 0:
        return max(known[0] / 2, least), max(known[0] / 4, least)
    below = [e for e in known if e < here]
    above = [e for e in known if e > here]
    lower = math.sqrt(here * below[-1]) if below else here / 2
    upper = math.sqrt(here * above[0]) if above else lower
    return max(upper, least), max(lower, least)


def exchange(
    curves: Sequence[Curve],
    choice: Choice,
    measure: Callable[[Choice], Reading],
    most: float,
    looks: int,
) -> Choice:
    """Improves a choice by measurements of its neighbours, with all layers together.

    A curve is of one layer alone, and the effects of layers on the output do not add
    up exactly. So each layer is moved to its two neighbours in the whole network. Then
    the move, or the pair of moves, that saves most is made, as long as the bound stays
    within ``most``.

    Args:
      curves: the layers' curves.
      choice: the first choice, whose bound is within ``most``.
      measure: measures a choice, possibly the same one again.
      most: the budget.
      looks: approximate number of networks that may be measured.

    Returns:
      A choice with no more non-zeros whose bound is within ``most``.
    """
    orders = [_front(curve) for curve in curves]
    left = looks

    def look(choice: Choice) -> Reading:
        nonlocal left
        left -= 1
        return measure(choice)

    def total(choice: Choice) -> int:
        return sum(c[i].nonzeros for c, i in zip(curves, choice, strict=True))

    here = look(choice)
    while left > 2 * len(curves):
        near = _neighbours(orders, choice)
        costs = [look(_moved(choice, [move])).value ** 2 for move in near]
        slack = here.value / here.bound if here.bound > 0 else 1.0
        allowed = (slack * most) ** 2
        offers = []
        for a, (move, cost) in enumerate(zip(near, costs, strict=True)):
            offers.append((cost, [move]))
            for other, price in list(zip(near, costs, strict=True))[a + 1 :]:
                if other[0] != move[0]:
                    offers.append((cost + price - here.value**2, [move, other]))
        saves = [
            (total(choice) - total(_moved(choice, moves)), cost, moves)
            for cost, moves in offers
            if cost <= allowed
        ]
        saves = sorted((s for s in saves if s[0] > 0), key=lambda s: (-s[0], s[1]))
        for _, _, moves in saves[:8]:
            found = look(_moved(choice, moves))
            if found.bound <= most:
                choice, here = _moved(choice, moves), found
                break
        else:
            return choice
    return choice


def _front(curve: Curve) -> list[int]:
    """Positions from most to fewest weights, none of which costs more for no fewer."""
    out: list[int] = []
    for i in sorted(range(len(curve)), key=lambda i: (curve[i].cost, i)):
        if not out or curve[i].nonzeros < curve[out[-1]].nonzeros:
            out.append(i)
    return out


def _neighbours(
    orders: Sequence[Sequence[int]], choice: Choice
) -> list[tuple[int, int]]:
    near = []
    for k, (order, at) in enumerate(zip(orders, choice, strict=True)):
        if at not in order:
            continue
        place = order.index(at)
        near += [(k, order[p]) for p in (place - 1, place + 1) if 0 <= p < len(order)]
    return near


def _moved(choice: Choice, moves: Iterable[tuple[int, int]]) -> Choice:
    new = list(choice)
    for k, at in moves:
        new[k] = at
    return tuple(new)


def aim(
    bound: Callable[[float], float],
    most: float,
    *,
    looks: int,
    step: float,
    proportional: bool,
) -> float | None:
    """The largest factor found whose bound is within a budget, from 1 on.

    Args:
      bound: the bound of a factor, not less for a larger one.
      most: the budget.
      looks: largest number of factors to try.
      step: the ratio of two factors before one fits and one does not, at most.
      proportional: whether the bound is about in proportion to the factor.

    Returns:
      The factor, or None if none fits.
    """
    good, bad, factor = None, None, 1.0
    for _ in range(looks):
        found = bound(factor)
        if found <= most:
            good = factor
        else:
            bad = factor
        if good is not None and bad is not None:
            ratio = math.sqrt(bad / good)
            factor = good * ratio
        else:
            ratio = step if found <= most else 1 / step
            if proportional and 0 < found < math.inf:
                ratio = min(max(most / found, 1 / step), step)
            factor *= ratio
        if good is not None and ratio < CLOSE:
            break
    return good


def scale(
    fits: Callable[[float], bool], start: float = 1.0, looks: int = 7
) -> float | None:
    """The largest factor found that fits, by doubling or halving, then bisection.

    Returns:
      The factor, or None if none fits.
    """
    good, bad, factor = None, None, start
    for _ in range(looks):
        if fits(factor):
            good = factor
        else:
            bad = factor
        if good is None:
            factor = factor / 2
        elif bad is None:
            factor = factor * 2
        else:
            factor = math.sqrt(good * bad)
    return good
