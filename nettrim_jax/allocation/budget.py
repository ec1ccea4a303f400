"""One budget for a whole network: what to choose for it among measured answers.

Pure choices among points that were measured elsewhere: per layer a curve of weights
left against what the network's output moves by. Knows numbers and functions given to
it; knows no model and no solver.
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
LOOKS = 32  # networks measured on the way up, before the last stretch is halved


class Reading(NamedTuple):
    """One network measured on the rows that steer."""

    value: float
    bound: float  # what as many rows not seen exceed one time in a hundred


def deviation(moved: Sequence[float], size: Sequence[float], share: float) -> Reading:
    r"""The relative deviation over all folds, and what other rows stay below.

    .. math::
        r = \frac{\sum_f m_f}{\sum_f s_f}, \qquad
        \mathrm{se}^2 = \frac{F}{F - 1} \frac{\sum_f (m_f - r s_f)^2}
        {(\sum_f s_f)^2}, \qquad
        \text{bound}^2 = r + q_{F-1} \, \mathrm{se} \sqrt{1 + \text{share}}

    Args:
      moved: per fold, the squared change of the output.
      size: per fold, the squared trained output.
      share: how many times as many rows steer as the bound is for.

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
    """The mean fall of a metric over all folds, and what other rows stay below."""
    fall = np.asarray(before, float) - np.asarray(after, float)
    if not np.isfinite(fall).all():
        return Reading(math.inf, math.inf)
    mean, error = float(fall.mean()), _error(fall)
    margin = _quantile(len(fall)) * error * math.sqrt(1 + share) if error else 0.0
    return Reading(mean, mean + margin)


def _error(each: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(np.std(each, ddof=1) / math.sqrt(len(each))) if len(each) > 1 else 0.0


def _quantile(count: int) -> float:
    return QUANTILES[min(count - 1, len(QUANTILES) - 1)]


def chain(curves: Sequence[Curve]) -> list[Choice]:
    r"""Every choice that is best for some price of deviation, from none to all.

    .. math::
        \min_i \; \sum_k n_k(i_k) + \lambda \sum_k c_k(i_k), \qquad
        \lambda = \infty, \dots, 0

    with :math:`n` the weights left and :math:`c` the cost of a point. Each choice is
    the best at its own cost: none costs as little and leaves fewer. Neighbours differ
    in one layer, by one vertex of its curve's lower convex hull.
    (Everett, 1963; Shoham and Gersho, 1988.)
    """
    moves = []
    for k, curve in enumerate(curves):
        # of the first, the trained layer, and of what has fewer weights
        fewer = [i for i, p in enumerate(curve) if p.nonzeros < curve[0].nonzeros]
        some = [0, *fewer]
        vertices = [some[i] for i in reversed(hull([curve[i] for i in some]))]
        for old, new in zip(vertices, vertices[1:], strict=False):
            price = curve[new].cost - curve[old].cost
            gain = curve[old].nonzeros - curve[new].nonzeros
            moves.append((gain / price if price > 0 else math.inf, k, new))
    moves.sort(key=lambda move: -move[0])  # stable: a layer's own stay in order
    choices = [(0,) * len(curves)]
    for _, k, new in moves:
        last = choices[-1]
        choices.append((*last[:k], new, *last[k + 1 :]))
    return choices


def climb(count: int, fits: Callable[[int], bool]) -> int:
    """The last of a row of networks before the first that does not fit.

    Not all are looked at: evenly spaced ones from the first on, then halves of the
    stretch in which one failed. So a network that fits by luck beyond one that does
    not is not taken.
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
    """Two epsilons that halve the steps from a point to its neighbours, in ratio.

    Below the smallest epsilon that a curve has, half of it; none below ``least``.
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
    """Improves a choice by what its neighbours measure, all layers together.

    Curves are of one layer at a time, and what layers do to the output does not add
    up exactly. So each layer is moved to its two neighbours within the whole, then
    the layer or pair of layers, one up and one down, that saves most is moved, as
    long as the bound stays within ``most``.

    Args:
      curves: the layers' points.
      choice: where to start; its bound is within ``most``.
      measure: of a choice; may be asked again.
      most: the budget.
      looks: about how many networks may be measured.

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
    """Positions from most to fewest weights; none that costs more for no fewer."""
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


def scale(
    fits: Callable[[float], bool], start: float = 1.0, looks: int = 7
) -> float | None:
    """The largest factor found that fits: doubled or halved first, then bisected.

    Returns:
      None if none of them fits.
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
