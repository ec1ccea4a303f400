"""Leaves of which the derivatives of each sample are products of matrices.

Of a matrix that meets one row the derivative is an outer product. Then the square of
each entry is an outer product, too, of squares, and a sum over samples of these is one
product of matrices. Of a convolution's kernel it is the product of the windows and of
derivatives by the results; as one more convolution for each sample it takes XLA many
times as long on CPU.

Knows flat programs; knows no solver.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp

from nettrim_jax.tracing import jaxprs
from nettrim_jax.tracing.folding import Folding, fold
from nettrim_jax.tracing.jaxprs import Flat, Literal, Op, Ref
from nettrim_jax.typing import HIGHEST, Array, wide

WINDOWS = 2**22  # the most entries of the windows of a sample


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

    @property
    def entries(self) -> int:
        """How many numbers of each sample are kept."""
        return math.prod(self.shape[axis] for axis in self.over)

    def met(self, rows: Array) -> Array:
        """What :meth:`summed` needs of the rows ``[s, ...]``, ``[s, d_in]``."""
        axes = [axis + 1 for axis in self.along]
        free = [axis for axis in range(1, rows.ndim) if axis not in axes]
        X = rows.transpose(0, *axes, *free).reshape(len(rows), -1)
        return X.astype(wide(X.dtype)) ** 2

    def summed(self, met: Array, first: Array, other: Array) -> Array:
        """Sums products of two derivatives over samples, in the leaf's shape.

        Args:
          met: of what the leaf is multiplied by in each sample.
          first: ``[s, ...]``, derivatives by the results of the operation.
          other: the same in another direction.
        """
        dtype = wide(first.dtype)
        D = (first.astype(dtype) * other.astype(dtype)).reshape(len(first), -1)
        total = jnp.matmul(met.astype(dtype).T, D, precision=HIGHEST)
        rest = [axis for axis in range(len(self.shape)) if axis not in self.over]
        return _laid_out(total, [*self.over, *rest], self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Windowed:
    """The one convolution that a leaf is the kernel of; has what :class:`Outer` has.

    Attributes:
      op: the operation, in the main block.
      row: slot of what the leaf is convolved with.
      folding: the operation as products of matrices.
      shape: shape of the leaf.
    """

    op: Op
    row: Ref
    folding: Folding
    shape: tuple[int, ...]

    @property
    def entries(self) -> int:
        """How many numbers of each sample are kept."""
        return self.folding.lanes * self.folding.rows * self.folding.d_in

    def met(self, rows: Array) -> Array:
        """The windows, ``[s, b, n, d_in]``."""
        pick = jnp.arange(self.folding.rows, dtype=jnp.int32)
        X = jax.vmap(lambda A: self.folding.inputs(A, pick))(rows)
        return X.astype(wide(X.dtype))

    def summed(self, met: Array, first: Array, other: Array) -> Array:
        """Sums products of two derivatives over samples, in the leaf's shape."""
        pick = jnp.arange(self.folding.rows, dtype=jnp.int32)

        def slopes(D: Array) -> Array:
            D = jax.vmap(lambda A: self.folding.result(A, pick))(D).astype(met.dtype)
            return jnp.einsum("sbni,sbno->sbio", met, D, precision=HIGHEST)

        total = jnp.sum(slopes(first) * slopes(other), axis=0)
        return _laid_out(total.swapaxes(-1, -2), self.folding.weight_order, self.shape)


def _laid_out(total: Array, order: Sequence[int], shape: tuple[int, ...]) -> Array:
    """An array with a leaf's axes in this order, in the leaf's own shape."""
    total = total.reshape([shape[axis] for axis in order])
    return total.transpose([order.index(axis) for axis in range(len(order))])


def outer_of(flat: Flat, leaves: Collection[int]) -> dict[int, Outer | Windowed]:
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
            found = _outer(flat, mine[0], slot) or _windowed(flat, mine[0], slot)
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


def _windowed(flat: Flat, op: Op, slot: int) -> Windowed | None:
    if op.name != "conv_general_dilated" or op.inputs[1] != slot:
        return None
    row = op.inputs[0]
    if isinstance(row, Literal) or row == slot:
        return None
    avals = (flat.aval(ref) for ref in (row, slot, op.outputs[0]))
    folding = fold(op, 1, *avals)
    if isinstance(folding, str):
        return None
    found = Windowed(op, row, folding, flat.avals[slot].shape)
    return found if found.entries <= WINDOWS else None
