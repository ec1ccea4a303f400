"""Leaves whose weights share few values, as codes and the values of the codes.

Knows arrays and positions in leaves; knows no network.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax._numerics import numpy_of
from nettrim_jax._trees import known
from nettrim_jax.typing import Array, wide


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """A leaf as codes: ``codebook[group, code - 1]`` is an entry's value.

    Attributes:
      codes: uint8, of the leaf's shape; 0 stands for zero.
      codebook: the values, ``[groups, k]``, in the leaf's dtype; they ascend, and zeros
        follow where a group has fewer. Within ``jax.jit`` they are NaN where a group
        has more values than there are codes, since its layer failed.
      group: int32, the row of the codebook that an entry has; it has the leaf's shape,
        or 1 along axes on which it is the same. Entries that no layer has are -1.

    Example:
      >>> import numpy as np
      >>> from nettrim_jax.methods.codes import Codes
      >>> codes = np.array([[1, 0], [2, 1]], np.uint8)
      >>> book, group = np.array([[0.5, 2.0]]), np.zeros((1, 1), np.int32)
      >>> Codes(codes, book, group).decode().tolist()
      [[0.5, 0.0], [2.0, 0.5]]
    """

    codes: Any
    codebook: Any
    group: Any

    def decode(self) -> Any:
        """The leaf; entries that no layer has are zero."""
        xp = numpy_of(self.codes)
        value = self.codebook.ravel()[xp.maximum(self.places(), 1) - 1]
        return xp.where(self.codes != 0, value, xp.zeros((), value.dtype))

    def places(self) -> Any:
        """For each entry the place of its value in the raveled codebook, from 1.

        Entries that are zero have 0.
        """
        xp = numpy_of(self.codes)
        codes = self.codes.astype(np.int32)
        first = xp.maximum(xp.asarray(self.group), 0) * self.codebook.shape[1]
        return xp.where(codes != 0, codes + first.astype(np.int32), 0)

    def members(self) -> Any:
        """The number of entries that have each value, by its place in the codebook.

        Those of :meth:`places` 0 come first.
        """
        flat, count = self.places().ravel(), self.codebook.size + 1
        if isinstance(flat, np.ndarray):  # a program would fold constants for seconds
            return np.bincount(flat, minlength=count).astype(np.int32)
        return jnp.zeros(count, jnp.int32).at[flat].add(1)


def groups_of(
    indices: Sequence[np.ndarray], shape: Sequence[int], apart: bool
) -> np.ndarray:
    """Which entries of a leaf share values, as :class:`Codes` has it.

    Args:
      indices: positions in the raveled leaf of each of its sites, ``[b, d_in, d_out]``.
      shape: that of the leaf.
      apart: whether each unit has values of its own.
    """
    found = np.full(int(np.prod(shape)), -1, np.int32)
    count = 0
    for index in indices:
        lanes, _, units = index.shape
        group = np.arange(lanes, dtype=np.int32)[:, None, None]
        if apart:
            group = group * units + np.arange(units, dtype=np.int32)[None, None]
        found[index] = count + group
        count += lanes * (units if apart else 1)
    found = found.reshape(shape)
    for axis in range(found.ndim):
        first = found.take([0], axis) if found.shape[axis] else found
        if found.shape[axis] and (found == first).all():
            found = first
    return found


def ranks_of(leaf: Array, group: np.ndarray) -> Array:
    """The place of each entry's value among those of its group, in ascending order.

    Args:
      leaf: the leaf. If its values are known it is copied to the host.
      group: which entries share values, of :func:`groups_of`.

    Returns:
      int32, of the leaf's shape, from 1; 0 for zeros and for entries of no group.
    """
    values = _near(leaf)
    xp = numpy_of(values)
    groups = _count(group)
    flat = values.ravel().astype(wide(values.dtype))
    mine = np.broadcast_to(group, values.shape).ravel()
    mine = xp.where((flat != 0) & (mine >= 0), mine, np.int32(groups))
    order = xp.lexsort((flat, mine))
    mine, flat = mine[order], flat[order]
    new = xp.ones(1, bool)
    new = xp.concatenate([new, (mine[1:] != mine[:-1]) | (flat[1:] != flat[:-1])])
    total = xp.cumsum(new, dtype=np.int32)
    first = xp.searchsorted(mine, np.arange(groups + 1, dtype=np.int32))
    before = total[xp.minimum(first, len(total) - 1)] - 1
    rank = xp.where(mine < groups, total - before[mine], 0).astype(np.int32)
    if xp is np:
        ranks = np.zeros(values.size, np.int32)
        ranks[order] = rank
    else:
        ranks = jnp.zeros(values.size, jnp.int32).at[order].set(rank)
    return ranks.reshape(values.shape)


def most_of(ranks: Array, index: np.ndarray) -> Array:
    """The largest number of values of a group, of those with entries at ``index``."""
    return numpy_of(ranks).max(ranks.ravel()[index], initial=0)


def codes_of(
    leaf: Array, group: np.ndarray, count: int, ranks: Array | None = None
) -> Codes | None:
    """The codes of a leaf; None if a group is known to have more values than codes.

    While values are traced, all values of such a group are NaN, and so is what
    :meth:`Codes.decode` says of its entries; other groups have theirs.

    Args:
      leaf: the leaf.
      group: which entries share values, of :func:`groups_of`.
      count: the largest number of values of a group, at most 255.
      ranks: those of :func:`ranks_of`, if they are there.
    """
    values = _near(leaf)
    ranks = ranks_of(leaf, group) if ranks is None else ranks
    mine = np.broadcast_to(group, values.shape)
    rows = max(_count(group), 1)
    if isinstance(values, np.ndarray):
        used = int(ranks.max(initial=0))
        if used > count:
            return None
        book = np.zeros((rows, max(used, 1)), values.dtype)
        real = np.asarray(ranks) > 0
        book[mine[real], ranks[real] - 1] = values[real]
        return Codes(ranks.astype(np.uint8), book, group)
    slot = jnp.where(ranks > 0, ranks - 1, count)
    book = jnp.zeros((rows, count), values.dtype)
    book = book.at[mine, slot].set(values, mode="drop")
    most = jnp.zeros(rows, jnp.int32).at[mine].max(ranks)
    nan = np.array(np.nan, values.dtype)
    book = jnp.where(most[:, None] > count, nan, book)
    # a larger code would be one of another group, or wrap around
    return Codes(jnp.minimum(ranks, count).astype(jnp.uint8), book, group)


def _near(leaf: Array) -> Any:
    """The leaf where NumPy reads it, from whatever device, if its values are known."""
    # one on several devices, too: a sort needs the whole of it
    if not known(leaf) or not getattr(leaf, "is_fully_addressable", True):
        return leaf
    return np.asarray(leaf)


def _count(group: np.ndarray) -> int:
    """The number of groups."""
    return int(group.max(initial=-1)) + 1
