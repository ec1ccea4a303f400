"""Rules of operations that lay entries out otherwise: merged, split, spread axes.

Knows these operations; knows no program.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nettrim_jax.structure.registry import (
    Cut,
    Follower,
    all_stay,
    rule,
    sizes,
    with_params,
)
from nettrim_jax.structure.values import ONE, Axis, Value, least


@rule("transpose")
def _transpose(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """The axes in another order."""
    [value] = inputs
    return [value.moved([value.axes[p] for p in eqn.params["permutation"]])]


@rule("squeeze")
def _squeeze(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Axes of size one go; the index that one had left must stay."""
    [value] = inputs
    gone = {d % len(value.axes) for d in eqn.params["dimensions"]}
    for axis in gone:
        walk.stay(value.axes[axis], "`squeeze` leaves one index of it")
    return [value.moved([a for i, a in enumerate(value.axes) if i not in gone])]


def _broadcast_shape(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    return with_params(eqn, args, shape=sizes(eqn.params["shape"], cut.after[0]))


@rule("broadcast_in_dim", _broadcast_shape)
def _broadcast(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Axes of the operand go on; those that are new, or of size one, are fresh."""
    value, *_ = inputs
    shape = eqn.params["shape"]
    axes: list[Axis | None] = [None] * len(shape)
    before = eqn.invars[0].aval.shape
    for axis, at in enumerate(eqn.params["broadcast_dimensions"]):
        if before[axis] is shape[at] or before[axis] == shape[at]:
            axes[at] = value.axes[axis]
        else:
            walk.stay(value.axes[axis], "`broadcast_in_dim` repeats its one index")
    made = [
        walk.fresh(size, value.whole) if axis is None else axis
        for axis, size in zip(axes, shape, strict=True)
    ]
    return [value.moved(made)]


def _new_sizes(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    new = sizes(eqn.params["new_sizes"], cut.after[0])
    return with_params(eqn, args, new_sizes=new)


@rule("reshape", _new_sizes)
def _reshape(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Merged axes are removed by either part; a split finds or makes these parts."""
    value, *_ = inputs
    before, after = eqn.invars[0].aval.shape, eqn.params["new_sizes"]
    pairs = None
    if eqn.params.get("dimensions") is None:
        pairs = grouped(before, after)
    if pairs is None:
        why = "`reshape` lays it out in a way that is not known"
        return [value.moved([all_stay(walk, value.axes, why)] * len(after))]
    axes: list[Axis] = [ONE] * len(after)
    for left, right in pairs:
        if len(left) == len(right) == 1:
            axes[right[0]] = value.axes[left[0]]
            continue
        if not right:
            for axis in left:
                walk.stay(value.axes[axis], "`reshape` leaves one index of it")
            continue
        if not left:
            continue
        merged = merge(walk, [(value.axes[a], before[a]) for a in left])
        found = split(walk, merged, [after[a] for a in right])
        for at, axis in zip(right, found, strict=True):
            axes[at] = axis
    return [value.moved(axes)]


def grouped(before: Sequence[Any], after: Sequence[Any]) -> list | None:
    """Which axes of a reshape's operand become which of its result.

    Returns pairs of axes of both with equal products, sizes of one apart; None if that
    is not known, as where there are no entries. Sizes may be symbolic.
    """
    if any(_is(n, 0) for n in (*before, *after)):
        return None
    pairs: list[tuple[list, list]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        if i < len(before) and _is(before[i], 1):
            one = j < len(after) and _is(after[j], 1)
            pairs.append(([i], [j] if one else []))
            i, j = i + 1, j + one
            continue
        if j < len(after) and _is(after[j], 1):
            pairs.append(([], [j]))
            j += 1
            continue
        if i == len(before) or j == len(after):
            return None
        left, right = [i], [j]
        p, q = before[i], after[j]
        i, j = i + 1, j + 1
        while not _is(p, q):
            if _less(p, q) and i < len(before):
                p, left, i = p * before[i], [*left, i], i + 1
            elif _less(q, p) and j < len(after):
                q, right, j = q * after[j], [*right, j], j + 1
            else:
                return None
        pairs.append((left, right))
    return pairs


def _is(one: Any, other: Any) -> bool:
    return bool(one == other)


def _less(one: Any, other: Any) -> bool:
    """Whether one size is less; symbolic ones are, too, if they divide the other."""
    if isinstance(one, int) and isinstance(other, int):
        return one < other
    try:
        return bool(one < other)
    except Exception:  # of a type that is not public: it depends on the symbols
        return False


def merge(walk: Follower, parts: list[tuple[Axis, Any]]) -> Axis:
    """One axis of several; an index goes where either of its parts does."""
    parts = [part for part in parts if not _is(part[1], 1)]
    if all(axis.ids is None for axis, _ in parts):
        return parts[0][0] if parts else ONE
    why = "`reshape` merges it with an axis of symbolic size"
    if not all(isinstance(size, int | np.integer) for _, size in parts):
        return all_stay(walk, [axis for axis, _ in parts], why)
    out, count = parts[0]
    for axis, size in parts[1:]:
        if out.ids is None and axis.ids is not None:
            ids, levels = np.tile(axis.ids, count), np.tile(axis.levels, (1, count))
            out = Axis(ids, "", levels)
        elif out.ids is not None and axis.ids is None:
            ids, levels = np.repeat(out.ids, size), np.repeat(out.levels, size, 1)
            out = Axis(ids, "", levels)
        elif out.ids is not None and axis.ids is not None:
            ids = walk.ids.either(out.ids, axis.ids).ravel()
            one, other = out.levels[:, :, None], axis.levels[:, None, :]
            # zero as removed: whichever part goes; as given: where one part is zero
            levels = [np.minimum(one[0], other[0]), np.maximum(one[1], other[1])]
            out = Axis(ids, "", np.stack(levels).reshape(2, -1))
        count *= size
    return out


def split(walk: Follower, axis: Axis, shape: Sequence[Any]) -> list[Axis]:
    """Several axes of one."""
    if len(shape) == 1:
        return [axis]
    if axis.ids is None:
        return [ONE if _is(n, 1) else axis for n in shape]
    count, rest = shape[0], math.prod(shape[1:])
    if count == 1:
        return [ONE, *split(walk, axis, shape[1:])]
    if rest == 1:
        return [axis, *[ONE] * (len(shape) - 1)]
    levels = axis.levels.reshape(2, count, rest)
    rows, columns = (least(list(np.moveaxis(levels, k, 0))) for k in (2, 1))
    slow, fast = parted(walk, axis.ids.reshape(count, rest))
    first = _axis(slow, rows)
    last = _axis(fast, columns)
    return [first, *split(walk, last, shape[1:])]


def _axis(ids: np.ndarray | None, levels: np.ndarray) -> Axis:
    if ids is None:
        return Axis(None, "`reshape` splits it off an axis of which it is no part")
    return Axis(ids, "", levels)


def parted(
    walk: Follower, ids: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The parts of ids that stand in rows and columns; None if they do not matter."""
    roots = walk.ids.find(ids)
    if (roots == roots[:1]).all():
        return None, ids[0]
    if (roots == roots[:, :1]).all():
        return ids[:, 0], None
    known, one, other = walk.ids.parts(ids)
    if known.all():
        one, other = one.reshape(ids.shape), other.reshape(ids.shape)
        if (one == one[:, :1]).all() and (other == other[:1]).all():
            return one[:, 0], other[0]
    slow, fast = (walk.ids.fresh(n) for n in ids.shape)
    walk.ids.unite(walk.ids.either(slow, fast).ravel(), ids.ravel())
    return slow, fast
