"""Matrices that meet one row: the derivative by them is an outer product.

Then the square of each entry is an outer product, too, of squares, and a sum over
samples of these is one product of matrices.

Knows flat programs; knows no solver.
"""

import dataclasses
import math
from collections.abc import Collection

import jax.numpy as jnp

from nettrim_jax.tracing import jaxprs
from nettrim_jax.tracing.jaxprs import Flat, Literal, Op, Ref
from nettrim_jax.typing import HIGHEST, Array, wide


@dataclasses.dataclass(frozen=True, eq=False)
class Outer:
    """The one product that a leaf takes part in.

    Attributes:
      op: the operation, in the main block.
      row: slot of what the leaf is multiplied by, which is one row.
      over: axes of the leaf that are summed over, in the order of ``along``.
      along: axes of the row that are summed over.
      shape: shape of the leaf.
    """

    op: Op
    row: Ref
    over: tuple[int, ...]
    along: tuple[int, ...]
    shape: tuple[int, ...]

    def summed(self, rows: Array, first: Array, other: Array) -> Array:
        """Sums products of two derivatives over samples, in the leaf's shape.

        Args:
          rows: ``[s, ...]``, what the leaf is multiplied by in each sample.
          first: ``[s, ...]``, derivatives by the results of the operation.
          other: the same in another direction.
        """
        dtype = wide(first.dtype)
        s = len(rows)
        axes = [axis + 1 for axis in self.along]
        free = [axis for axis in range(1, rows.ndim) if axis not in axes]
        X = rows.astype(dtype).transpose(0, *axes, *free).reshape(s, -1)
        D = (first.astype(dtype) * other.astype(dtype)).reshape(s, -1)
        total = jnp.matmul((X * X).T, D, precision=HIGHEST)
        rest = [axis for axis in range(len(self.shape)) if axis not in self.over]
        order = [*self.over, *rest]
        total = total.reshape([self.shape[axis] for axis in order])
        return total.transpose([order.index(axis) for axis in range(len(order))])


def outer_of(flat: Flat, leaves: Collection[int]) -> dict[int, Outer]:
    """The leaves, by position among the inputs, that are used so and not otherwise."""
    readers: dict[int, list[Op]] = {}
    for op in flat.block.ops:
        for slot in jaxprs.slots_read(op):
            readers.setdefault(slot, []).append(op)
    returned = {ref for ref in flat.block.outputs if not isinstance(ref, Literal)}
    out = {}
    for k in leaves:
        slot = flat.block.inputs[k]
        mine = readers.get(slot, [])
        if len(mine) == 1 and slot not in returned:
            found = _outer(flat, mine[0], slot)
            if found is not None:
                out[k] = found
    return out


def _outer(flat: Flat, op: Op, slot: int) -> Outer | None:
    if op.name != "dot_general" or op.inputs[0] == op.inputs[1]:
        return None
    (contract, batch) = op.params["dimension_numbers"]
    if any(batch):
        return None
    side = op.inputs.index(slot)
    row = op.inputs[1 - side]
    shape = flat.aval(row).shape
    along, over = tuple(contract[1 - side]), tuple(contract[side])
    rows = math.prod(size for axis, size in enumerate(shape) if axis not in along)
    if isinstance(row, Literal) or rows != 1:
        return None
    return Outer(op, row, over, along, flat.avals[slot].shape)
