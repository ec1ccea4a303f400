"""What surrounds the units of a group: the layers that make them and that read them.

Knows arrays; knows no network.
"""

from typing import NamedTuple

import numpy as np


class Reader(NamedTuple):
    """One matrix that sums over units: a lane of a layer.

    Attributes:
      unit: the unit of each input, ``[d_in]``; -1 for inputs that are no unit's.
      W: its weights, ``[d_in, d_out]``.
      X: rows of its inputs that count, ``[n, d_in]``.
      moments: the mean over all rows of the products of inputs, of ``[X, 1]`` where a
        bias can move; None if no criterion asked for it.
      feels: how far pairs of errors of its response move the output,
        ``[d_out, d_out]``; None if that is unknown, or if they are the output.
    """

    unit: np.ndarray
    W: np.ndarray
    X: np.ndarray
    moments: np.ndarray | None
    feels: np.ndarray | None


class Maker(NamedTuple):
    """One matrix whose responses are units: a lane of a layer.

    Attributes:
      unit: the unit of each response, ``[d_out]``; -1 for those that are no unit's.
      W: its weights, ``[d_in, d_out]``.
      P: rows of its response, ``[n, d_out]``.
      feels: as of a :class:`Reader`.
    """

    unit: np.ndarray
    W: np.ndarray
    P: np.ndarray
    feels: np.ndarray | None


class Around(NamedTuple):
    """The units of one group, at one step of its loops, with all around them.

    Attributes:
      name: the name of the group and the step, which tells groups apart.
      count: the number of units.
      makers: the matrices that make them.
      readers: the matrices that sum over them.
      slopes: the derivative of a loss by a factor of each unit, for every sample,
        ``[samples, count]``; None if no criterion asked for it.
    """

    name: str
    count: int
    makers: tuple[Maker, ...]
    readers: tuple[Reader, ...]
    slopes: np.ndarray | None = None


def places(unit: np.ndarray, count: int) -> np.ndarray:
    """The positions of every unit, ``[most, count]``; -1 where it has fewer."""
    mine = np.flatnonzero(unit >= 0)
    order = mine[np.argsort(unit[mine], kind="stable")]
    sizes = np.bincount(unit[mine], minlength=count)
    out = np.full((max(int(sizes.max(initial=0)), 1), count), -1)
    starts = np.cumsum(sizes) - sizes
    out[np.arange(len(order)) - starts[unit[order]], unit[order]] = order
    return out


def totals(values: np.ndarray, unit: np.ndarray, count: int) -> np.ndarray:
    """The sum over the entries of each unit, ``[count]``."""
    mine = unit >= 0
    return np.bincount(unit[mine], values[mine], minlength=count)[:count]
