"""One linear operation as a stack of matrix products.

``[b, n, d_in] @ [b, d_in, d_out] -> [b, n, d_out]``.

``fold`` reads a matrix product or a convolution and says how its activations, its
weight and its result are laid out as matrices. Groups and batch dimensions of the
weight are lanes ``b``; all other axes, such as samples and positions, are rows ``n``.

Knows one operation; knows no network and no solver.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax.tracing.jaxprs import Op
from nettrim_jax.typing import Array

IN_BOUNDS = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS
LINEAR = ("dot_general", "conv_general_dilated", "ragged_dot_general")


@dataclasses.dataclass(frozen=True)
class Folding:
    """The layout of one operation's arrays as matrices.

    Attributes:
      kind: ``"dense"`` or ``"conv"``.
      lanes: ``b``.
      rows: ``n`` of one run of the operation.
      d_in: inputs of a unit.
      d_out: units of a lane.
      row_shape: the rows' axes before they were merged, the batch first.
      side: which operand the weight is.
      weight_order: axes of the weight: lanes, inputs, units.
      inputs_order: axes of a dense operation's activations: lanes, rows, inputs.
      result_order: axes of the result: lanes, rows, units.
      labels: per axis of the result ``"row"`` or ``"unit"``.
      window: a convolution's kernel size.
      op: the operation, for the geometry of a convolution.
      ragged: whether each row belongs to one lane only, given by sizes of groups.
    """

    kind: str
    lanes: int
    rows: int
    d_in: int
    d_out: int
    row_shape: tuple[int, ...]
    side: int
    weight_order: tuple[int, ...]
    inputs_order: tuple[int, ...]
    result_order: tuple[int, ...]
    labels: tuple[str, ...]
    window: tuple[int, ...]
    op: Op
    ragged: bool = False

    def inputs(self, A: Array, pick: Array) -> Array:
        """Activations of chosen rows as ``X``, ``[b, m, d_in]``.

        ``pick`` is ``[m]``; of a ragged operation ``[b, m]``.
        """
        if self.kind == "conv":
            return _windows(self, A, pick)
        A = A.transpose(self.inputs_order)
        if self.ragged:
            return A[pick]
        A = A.reshape(self.lanes, self.rows, self.d_in)
        return _taken(A, pick, axis=1)

    def result(self, A: Array, pick: Array) -> Array:
        """Chosen rows of an array in the result's layout, ``[b, m, d_out]``."""
        A = A.transpose(self.result_order)
        if self.ragged:
            return A[pick]
        if self.kind == "dense":
            A = A.reshape(self.lanes, self.rows, self.d_out)
            return _taken(A, pick, axis=1)
        # the lanes are the outer part of a convolution's channel axis
        A = A.reshape(self.rows, self.lanes, self.d_out)
        return _taken(A, pick, axis=0).transpose(1, 0, 2)

    def members(self, sizes: Array) -> Array:
        """Which rows belong to each lane of a ragged operation, ``[b, n]`` bool."""
        ends = jnp.cumsum(sizes)[:, None]
        row = jnp.arange(self.rows, dtype=ends.dtype)[None, :]
        return (row < ends) & (row >= ends - sizes[:, None].astype(ends.dtype))

    def weight(self, index: Any, loops: int) -> Any:
        """An array in the weight's layout as ``[*loops, b, d_in, d_out]``."""
        head = index.shape[:loops]
        order = tuple(range(loops)) + tuple(loops + a for a in self.weight_order)
        index = index.transpose(order)
        if self.kind == "conv":  # [d_out * b, d_in] with the lanes outside
            index = index.reshape(*head, self.lanes, self.d_out, self.d_in)
            return index.swapaxes(-1, -2)
        return index.reshape(*head, self.lanes, self.d_in, self.d_out)

    def units(self, index: np.ndarray, loops: int) -> np.ndarray:
        """One row of an array in the result's layout as ``[*loops, b, d_out]``.

        Row axes of ``index`` are of size one.
        """
        head = index.shape[:loops]
        order = tuple(range(loops)) + tuple(loops + a for a in self.result_order)
        return index.transpose(order).reshape(*head, self.lanes, self.d_out)


def fold(op: Op, side: int, lhs: Any, rhs: Any, out: Any) -> Folding | str:
    """Folds an operation whose operand ``side`` is the weight.

    Args:
      op: one of ``LINEAR``.
      side: 0 if the weight is the left operand, 1 if the right.
      lhs: shape and dtype of the left operand.
      rhs: shape and dtype of the right operand.
      out: shape and dtype of the result.

    Returns:
      The folding, or why there is none, in words.
    """
    if op.name == "dot_general":
        return _fold_dot(op, side, (lhs, rhs))
    if op.name == "ragged_dot_general":
        return _fold_ragged(op, side, lhs, rhs)
    return _fold_conv(op, side, rhs, out)


def _fold_dot(op: Op, side: int, avals: tuple[Any, Any]) -> Folding | str:
    contract, batch = op.params["dimension_numbers"]
    weight, act = avals[side].shape, avals[1 - side].shape
    wc, wb = tuple(contract[side]), tuple(batch[side])
    ac, ab = tuple(contract[1 - side]), tuple(batch[1 - side])
    wf = tuple(a for a in range(len(weight)) if a not in wc + wb)
    af = tuple(a for a in range(len(act)) if a not in ac + ab)

    def size(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
        return math.prod(shape[a] for a in axes)

    if not wc:
        return "an outer product: nothing is summed over the weight"
    # the result's axes: batch, then the left operand's rest, then the right's
    nb, nw, na = len(wb), len(wf), len(af)
    starts = (nb, nb + nw) if side == 0 else (nb + na, nb)
    units = tuple(range(starts[0], starts[0] + nw))
    rows = tuple(range(starts[1], starts[1] + na))
    labels = ["unit"] * (nb + nw + na)
    for axis in rows:
        labels[axis] = "row"
    return Folding(
        kind="dense",
        lanes=size(weight, wb),
        rows=size(act, af),
        d_in=size(weight, wc),
        d_out=size(weight, wf),
        row_shape=tuple(act[a] for a in af),
        side=side,
        weight_order=wb + wc + wf,
        inputs_order=ab + af + ac,
        result_order=tuple(range(nb)) + rows + units,
        labels=tuple(labels),
        window=(),
        op=op,
    )


def _fold_ragged(op: Op, side: int, lhs: Any, rhs: Any) -> Folding | str:
    numbers = op.params["ragged_dot_dimension_numbers"]
    contract, batch = numbers.dot_dimension_numbers
    (left, right), group = contract, tuple(numbers.rhs_group_dimensions)
    plain = (
        side == 1
        and not any(batch)
        and len(lhs.shape) == 2
        and len(left) == len(right) == len(group) == 1
        and tuple(numbers.lhs_ragged_dimensions) == (1 - left[0],)
        and op.params.get("group_offset") is None
    )
    if not plain:
        return "a ragged product whose groups are not rows of its left operand"
    units = next(a for a in range(3) if a not in (*right, *group))
    return Folding(
        kind="dense",
        lanes=rhs.shape[group[0]],
        rows=lhs.shape[1 - left[0]],
        d_in=rhs.shape[right[0]],
        d_out=rhs.shape[units],
        row_shape=(lhs.shape[1 - left[0]],),
        side=1,
        weight_order=(*group, *right, units),
        inputs_order=(1 - left[0], *left),
        result_order=(0, 1),
        labels=("row", "unit"),
        window=(),
        op=op,
        ragged=True,
    )


def _fold_conv(op: Op, side: int, rhs: Any, out: Any) -> Folding | str:
    if side == 0:
        return "a convolution whose image, not kernel, is the parameter"
    if op.params["batch_group_count"] != 1:
        return "a convolution with batch_group_count, a gradient's form"
    numbers = op.params["dimension_numbers"]
    lanes = op.params["feature_group_count"]
    out_spec, rhs_spec = numbers.out_spec, numbers.rhs_spec
    out_shape = out.shape
    labels = ["row"] * len(out_shape)
    labels[out_spec[1]] = "unit"
    row_axes = (out_spec[0], *out_spec[2:])
    row_shape = tuple(out_shape[a] for a in row_axes)
    kernel = math.prod(rhs.shape[a] for a in rhs_spec[1:])
    return Folding(
        kind="conv",
        lanes=lanes,
        rows=math.prod(row_shape),
        d_in=kernel,
        d_out=rhs.shape[rhs_spec[0]] // lanes,
        row_shape=row_shape,
        side=1,
        # channels are innermost, so that consecutive inputs, for N:M, are of one place
        weight_order=(rhs_spec[0], *rhs_spec[2:], rhs_spec[1]),
        inputs_order=(),
        result_order=(*row_axes, out_spec[1]),
        labels=tuple(labels),
        window=tuple(rhs.shape[a] for a in rhs_spec[2:]),
        op=op,
    )


def _windows(folding: Folding, A: Array, pick: Array) -> Array:
    """The windows of an image that belong to chosen rows, ``[b, m, d_in]``.

    It only copies: gathering ``m`` windows needs neither the whole unfolded image nor
    a convolution's arithmetic.
    """
    if not folding.rows:
        return jnp.zeros((folding.lanes, len(pick), folding.d_in), A.dtype)
    params = folding.op.params
    batch, channel, *space = params["dimension_numbers"].lhs_spec
    # channels are last, so that copied entries are contiguous
    A = A.transpose((batch, *space, channel))
    inner = [
        (lo, hi, d - 1)
        for (lo, hi), d in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    A = jax.lax.pad(A, jnp.zeros((), A.dtype), [(0, 0, 0), *inner, (0, 0, 0)])
    dilation = params["rhs_dilation"]
    extent = [(k - 1) * d + 1 for k, d in zip(folding.window, dilation, strict=True)]
    strides = params["window_strides"]

    sizes = (1, *extent, A.shape[-1])
    start = _unraveled(pick, folding.row_shape, (1, *strides))
    axes = tuple(range(len(sizes) - 1))
    out = jax.lax.gather(
        A,
        start,
        jax.lax.GatherDimensionNumbers(
            offset_dims=tuple(range(1, len(sizes))),
            collapsed_slice_dims=(0,),
            start_index_map=axes,
        ),
        sizes,
        mode=IN_BOUNDS,
    )
    out = out[(slice(None), *(slice(None, None, d) for d in dilation))]
    out = out.reshape(len(pick), math.prod(folding.window), folding.lanes, -1)
    out = out.transpose(2, 0, 1, 3)
    return out.reshape(folding.lanes, len(pick), folding.d_in)


def _unraveled(pick: Array, shape: Sequence[int], strides: Sequence[int]) -> Array:
    """Positions along merged axes, each times its stride, ``[m, axes]``."""
    at, rest = [], pick
    for size, stride in zip(shape[::-1], strides[::-1], strict=True):
        wide = jnp.full_like(rest, size)
        # none is negative, so truncated division serves, without a select of the sign
        at.append(jax.lax.rem(rest, wide) * jnp.full_like(rest, stride))
        rest = jax.lax.div(rest, wide)
    return jnp.stack(at[::-1], axis=-1)


def _taken(A: Array, pick: Array, axis: int) -> Array:
    """``jnp.take`` of positions that are known to exist, a fifth of the operations."""
    if not A.shape[axis]:  # the oldest JAX takes no slice of nothing
        return A
    others = tuple(a for a in range(A.ndim) if a != axis)
    sizes = tuple(1 if a == axis else size for a, size in enumerate(A.shape))
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=others, collapsed_slice_dims=(axis,), start_index_map=(axis,)
    )
    return jax.lax.gather(A, pick[:, None], numbers, sizes, mode=IN_BOUNDS)
