"""Rules of operations that cut axes and put them together.

Knows these operations; knows no program.
"""

from typing import Any

import numpy as np

from nettrim_jax.structure.registry import (
    Cut,
    Follower,
    all_stay,
    picked,
    rule,
    with_params,
)
from nettrim_jax.structure.values import Axis, Value, least


def some(axis: Axis, at: np.ndarray) -> Axis:
    """Some indices of an axis."""
    if axis.ids is None:
        return axis
    return Axis(axis.ids[at], "", axis.levels[:, at])


@rule("rev")
def _rev(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """The indices in reverse."""
    axes = list(inputs[0].axes)
    for axis in eqn.params["dimensions"]:
        if axes[axis].ids is not None:
            axes[axis] = some(axes[axis], np.arange(len(axes[axis].ids))[::-1])
    return [inputs[0].moved(axes)]


def places(part: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Where some of the indices that are left stand among them."""
    return np.searchsorted(kept, part)


def _slice_kept(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    params, [array] = eqn.params, args
    starts, limits = list(params["start_indices"]), list(params["limit_indices"])
    strides = list(params["strides"] or [1] * len(starts))
    picks = {}
    for axis, (old, left) in enumerate(zip(cut.before[0], cut.after[0], strict=True)):
        if old is None:
            continue
        if left is None:
            left = np.arange(eqn.outvars[0].aval.shape[axis])
        picks[axis] = places(starts[axis] + strides[axis] * left, old)
        starts[axis], strides[axis], limits[axis] = 0, 1, len(old)
    [array] = with_params(
        eqn,
        [array],
        start_indices=tuple(starts),
        limit_indices=tuple(limits),
        strides=tuple(strides),
    )
    for axis, indices in picks.items():
        array = picked(array, axis, indices)
    return [array]


@rule("slice", _slice_kept)
def _slice(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Some of the indices."""
    [value], params = inputs, eqn.params
    strides = params["strides"] or [1] * len(value.axes)
    axes = []
    cuts = (params["start_indices"], params["limit_indices"], strides)
    for axis, *ends in zip(value.axes, *cuts, strict=True):
        if axis.ids is None or ends == [0, len(axis.ids), 1]:
            axes.append(axis)
        else:
            axes.append(walk.part(some(axis, np.arange(*ends))))
    return [value.moved(axes)]


def _split_kept(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]
    new = [
        size if kept[axis] is None else len(kept[axis])
        for kept, size in zip(cut.after, sizes, strict=True)
    ]
    return with_params(eqn, args, sizes=tuple(new))


@rule("split", _split_kept)
def _split(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Runs of indices."""
    [value], axis, start, out = inputs, eqn.params["axis"], 0, []
    for size in eqn.params["sizes"]:
        axes = list(value.axes)
        if axes[axis].ids is not None:
            part = some(axes[axis], np.arange(start, start + size))
            axes[axis] = walk.part(part)
        out.append(value.moved(axes))
        start += size
    return out


@rule("concatenate")
def _concatenate(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Indices of one operand after those of another."""
    along = eqn.params["dimension"]
    if len(inputs) == 1:
        return [inputs[0].moved(inputs[0].axes)]
    axes = []
    for at in range(len(inputs[0].axes)):
        mine = [value.axes[at] for value in inputs]
        if at != along:
            axis = walk.unite(mine)
            if axis.ids is not None:
                axis = Axis(axis.ids, "", least([one.levels for one in mine]))
            axes.append(axis)
            continue
        if all(axis.ids is None for axis in mine):
            axes.append(next((a for a in mine if "one" not in a.why), mine[0]))
            continue
        ids, levels = [], []
        shapes = [var.aval.shape for var in eqn.invars]
        for axis, value, shape in zip(mine, inputs, shapes, strict=True):
            new = axis
            if axis.ids is None:  # indices that stay, beside some that may go
                new = _staying(walk, shape[at], value, axis.why)
            if new.ids is None:
                axes.append(all_stay(walk, mine, new.why))
                break
            ids.append(new.ids)
            levels.append(new.levels)
        else:
            axes.append(Axis(np.concatenate(ids), "", np.concatenate(levels, 1)))
    whole = least([value.whole for value in inputs])
    sources = {value.source for value in inputs}
    source = None if None in sources else inputs[0].source
    return [Value(tuple(axes), whole, source=source)]


def _staying(walk: Follower, size: Any, value: Value, why: str) -> Axis:
    if not isinstance(size, int | np.integer):
        return Axis(None, why)
    ids = walk.ids.fresh(int(size))
    walk.ids.keep(ids, why)
    return Axis(ids, "", np.repeat(value.whole[:, None], size, 1))


def _pad_kept(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    config = list(eqn.params["padding_config"])
    for axis, (old, new) in enumerate(zip(cut.before[0], cut.after[0], strict=True)):
        if old is None and new is None:
            continue
        low, _, _ = config[axis]
        size, wide = eqn.invars[0].aval.shape[axis], eqn.outvars[0].aval.shape[axis]
        old = np.arange(size) if old is None else old
        new = np.arange(wide) if new is None else new
        inside = (new >= low) & (new < low + size)
        first = new[inside][0] - low if inside.any() else 0
        last = new[inside][-1] - low + 1 if inside.any() else 0
        cropped = int((old < first).sum()), int((old >= last).sum())
        front, back = int((new < low).sum()), int((new >= low + size).sum())
        config[axis] = (front - cropped[0], back - cropped[1], 0)
    return with_params(eqn, args, padding_config=tuple(config))


@rule("pad", _pad_kept)
def _pad(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """New indices around those that are there; some may be cut off."""
    value, filler = inputs
    axes = []
    cuts = zip(value.axes, eqn.params["padding_config"], strict=True)
    for at, (axis, (low, high, inner)) in enumerate(cuts):
        size, wide = eqn.invars[0].aval.shape[at], eqn.outvars[0].aval.shape[at]
        plain = all(isinstance(n, int | np.integer) for n in (size, wide, low, high))
        if (low, high, inner) == (0, 0, 0) or axis.ids is None:
            axes.append(Axis(None, "`pad` widens it") if size == 1 != wide else axis)
        elif not plain or inner:
            axes.append(walk.stay(axis, "`pad` puts others between its indices"))
        else:
            left = np.arange(max(0, -low), size - max(0, -high))
            kept = some(axis, left)
            if len(left) < size:
                walk.part(kept)
            # one index would be an axis of size one, which has no ids
            more = [walk.fresh(max(2, n), filler.whole) for n in (low, high)]
            counts = [max(0, n) for n in (low, high)]
            ids = [a.ids[:n] for a, n in zip(more, counts, strict=True)]
            levels = [a.levels[:, :n] for a, n in zip(more, counts, strict=True)]
            ids = np.concatenate([ids[0], kept.ids, ids[1]])
            levels = np.concatenate([levels[0], kept.levels, levels[1]], 1)
            axes.append(Axis(ids, "", levels))
    whole = least([value.whole, filler.whole])
    wider = [at for at, cut in enumerate(eqn.params["padding_config"]) if any(cut)]
    for at, axis in enumerate(axes):
        if axis.ids is not None and set(wider) - {at}:  # what is put around it, too
            around = least([axis.levels, filler.whole[:, None]])
            axes[at] = Axis(axis.ids, "", around)
    return [Value(tuple(axes), whole, source=value.source)]
