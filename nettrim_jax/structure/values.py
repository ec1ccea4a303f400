"""What is known of a value: per axis its ids, and what stands at removed indices.

Knows arrays; knows no program.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

# what stands at an index: maybe no number, anything, one number that no data change,
# zero; of several levels the least holds for a sum
BAD, ANY, CONSTANT, ZERO = 0, 1, 2, 3
PLANES = 2  # the levels if removed units are zero, and those of the params as given


class Axis(NamedTuple):
    """One axis of a value.

    Attributes:
      ids: the ids of its indices; None if all of them have to stay.
      why: the reason, if they have to.
      levels: what stands at each index, ``[PLANES, n]`` int8; None without ids.
    """

    ids: Any  # int32 [n]
    why: str = ""
    levels: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """What is known of a value.

    Attributes:
      axes: its axes.
      whole: the level of all entries together, ``[PLANES]`` int8.
      number: the number that all of its entries are, if that is known.
      leaf: the leaf or constant whose entries it has, moved at most.
      source: the leaf or constant that it is computed from, and no data.
      origin: the leaf that it is, and how many of its axes loops have taken.
      response: the number of the product that it is the result of.
    """

    axes: tuple[Axis, ...]
    whole: np.ndarray
    number: float | None = None
    leaf: int | None = None
    source: int | None = None
    origin: tuple[int, int] | None = None
    response: int | None = None

    def moved(self, axes: Sequence[Axis]) -> "Value":
        """The same entries, moved."""
        return dataclasses.replace(self, axes=tuple(axes), origin=None, response=None)


def levels(level: int, count: int | None = None) -> np.ndarray:
    """One level everywhere."""
    shape = (PLANES,) if count is None else (PLANES, count)
    return np.full(shape, level, np.int8)


def lowest(levels: Sequence[np.ndarray]) -> np.ndarray:
    """The lowest of several levels, of entries that all have a part."""
    return functools.reduce(np.minimum, levels)


def least(levels: Sequence[np.ndarray]) -> np.ndarray:
    """The level of entries of which some are of one kind, some of another.

    Two constants need not be the same number.
    """
    low = lowest(levels)
    return np.where(low == CONSTANT, np.int8(ANY), low)


ONE = Axis(None, "it is of size one")


def fixed(why: str, ndim: int) -> tuple[Axis, ...]:
    """Axes all of which have to stay."""
    return (Axis(None, why),) * ndim


def unknown(why: str, ndim: int) -> Value:
    """A value whose axes all have to stay, with the reason."""
    return Value(fixed(why, ndim), levels(ANY))


def holds_numbers(dtype: Any) -> bool:
    """Whether entries of this dtype are numbers, and no keys."""
    return jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)


def number_of(array: Any) -> float | None:
    """The number that all entries are; None if they differ or are no real numbers."""
    real = holds_numbers(array.dtype) and array.dtype.kind != "c"
    if not array.size or not real:
        return None
    first = array.flat[0]
    return float(first) if (array == first).all() else None


def given(array: np.ndarray, axes: Sequence[int]) -> tuple[Any, list]:
    """The levels of a known array: of all of it, and along each of some axes."""
    number = number_of(array)
    top = ANY if number is None else ZERO if number == 0 else CONSTANT
    zeros, along = array == 0, []
    for axis in axes:
        rest = tuple(a for a in range(array.ndim) if a != axis)
        same = array.max(rest) == array.min(rest) if array.dtype != bool else None
        same = zeros.all(rest) if same is None else same
        level = np.where(same, CONSTANT, ANY)
        along.append(np.where(zeros.all(rest), ZERO, level).astype(np.int8))
    return np.int8(top), along
