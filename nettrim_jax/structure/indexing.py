"""Rules of operations that look up or write at positions known at run time only.

Knows these operations; knows no program.
"""

from typing import Any

import numpy as np

from nettrim_jax.structure.pieces import some
from nettrim_jax.structure.registry import (
    Cut,
    Follower,
    all_stay,
    rule,
    sizes,
    with_params,
)
from nettrim_jax.structure.values import ANY, Axis, Value, least


def _why(eqn: Any) -> str:
    return f"`{eqn.primitive.name}` indexes it at run time"


def _slices(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    new = sizes(eqn.params["slice_sizes"], cut.before[0])
    return with_params(eqn, args, slice_sizes=new)


def _whole(value: Value) -> np.ndarray:
    return np.minimum(value.whole, np.int8(ANY))


def _start(eqn: Any, indices: Value, axis: int) -> int | None:
    """Where a slice of an axis starts, if that is known and there is one slice.

    Slices of arrays with symbolic sizes are written so.
    """
    numbers, params = eqn.params["dimension_numbers"], eqn.params
    known = indices.number is not None and len(indices.axes) == 1
    if not known or axis not in numbers.start_index_map:
        return None
    full, size = eqn.invars[0].aval.shape[axis], params["slice_sizes"][axis]
    if not isinstance(full, int) or axis in numbers.collapsed_slice_dims:
        return None
    start = int(indices.number or 0)
    return start if 0 <= start <= full - size else None


def _gathered(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    numbers = eqn.params["dimension_numbers"]
    new = list(sizes(eqn.params["slice_sizes"], cut.before[0]))
    starts = {}
    for axis, kept in enumerate(cut.before[0]):
        start = _start(eqn, cut.values[1], axis)
        if kept is not None and start is not None:
            stop = start + eqn.params["slice_sizes"][axis]
            starts[axis] = int((kept < start).sum())
            new[axis] = int(((kept >= start) & (kept < stop)).sum())
    array, indices = args
    if starts:
        number = int(cut.values[1].number or 0)
        each = [starts.get(axis, number) for axis in numbers.start_index_map]
        indices = np.asarray(each, indices.dtype)
    return with_params(eqn, [array, indices], slice_sizes=tuple(new))


@rule("gather", _gathered)
def _gather(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Axes of which every slice is all go on; indexed ones have to stay."""
    value, indices = inputs
    params, why = eqn.params, _why(eqn)
    numbers, size = params["dimension_numbers"], params["slice_sizes"]
    full = eqn.invars[0].aval.shape
    paired = tuple(getattr(numbers, "operand_batching_dims", ()))
    gone = {*numbers.collapsed_slice_dims, *paired}
    all_stay(walk, indices.axes, why)
    axes: list[Axis] = [Axis(None, why)] * len(eqn.outvars[0].aval.shape)
    offsets = iter(sorted(numbers.offset_dims))
    for a, axis in enumerate(value.axes):
        moves = a in numbers.start_index_map or size[a] != full[a]
        start = _start(eqn, indices, a)
        if a in gone or (moves and start is None):
            walk.stay(axis, why)
        if a not in gone:
            at = next(offsets)
            if start is not None:
                part = some(axis, np.arange(start, start + size[a]))
                axes[at] = walk.part(part)
            elif not moves:
                axes[at] = axis
    return [Value(tuple(axes), _whole(value))]


@rule(
    "scatter scatter-add scatter-mul scatter-max scatter-min scatter-sub scatter_add "
    "scatter_mul scatter_max scatter_min scatter_sub"
)
def _scatter(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Axes of which every update is all go together; written ones have to stay."""
    value, indices, updates = inputs
    numbers, why = eqn.params["dimension_numbers"], _why(eqn)
    full, part = eqn.invars[0].aval.shape, eqn.invars[2].aval.shape
    gone = {
        *numbers.inserted_window_dims,
        *getattr(numbers, "operand_batching_dims", ()),
    }
    windows = numbers.update_window_dims
    all_stay(walk, indices.axes, why)
    for a, axis in enumerate(updates.axes):
        if a not in windows:
            walk.stay(axis, why)
    axes, rest = [], iter(sorted(windows))
    for a, axis in enumerate(value.axes):
        at = None if a in gone else next(rest)
        moves = a in numbers.scatter_dims_to_operand_dims
        if at is None or moves or full[a] != part[at]:
            axes.append(walk.stay(axis, why))
            if at is not None:
                walk.stay(updates.axes[at], why)
            if axes[-1].ids is not None:
                axes[-1] = Axis(None, why)
        else:
            axes.append(_both(walk, axis, updates.axes[at]))
    return [Value(tuple(axes), least([value.whole, updates.whole]))]


def _both(walk: Follower, one: Axis, other: Axis) -> Axis:
    axis = walk.unite([one, other])
    if axis.ids is None:
        return axis
    return Axis(axis.ids, "", least([one.levels, other.levels]))


@rule("dynamic_slice", _slices)
def _dynamic_slice(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Axes that are taken as a whole go on."""
    value, size, why = inputs[0], eqn.params["slice_sizes"], _why(eqn)
    full = eqn.invars[0].aval.shape
    axes = [
        axis if size[a] == full[a] else walk.stay(axis, why)
        for a, axis in enumerate(value.axes)
    ]
    return [Value(tuple(axes), value.whole, source=value.source)]


@rule("dynamic_update_slice")
def _dynamic_update(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Axes that are written as a whole go together."""
    value, update, *_ = inputs
    why = _why(eqn)
    full, part = (var.aval.shape for var in eqn.invars[:2])
    axes = []
    for a, both in enumerate(zip(value.axes, update.axes, strict=True)):
        if full[a] == part[a]:
            axes.append(_both(walk, *both))
        else:
            axes.append(walk.stay(both[0], why))
            walk.stay(both[1], why)
    return [Value(tuple(axes), least([value.whole, update.whole]))]
