"""Rules of operations that put the indices of an axis together: sums, windows, orders.

Knows these operations; knows no program.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from nettrim_jax.structure.registry import Follower, rule
from nettrim_jax.structure.values import ANY, BAD, CONSTANT, ZERO, Axis, Value


def _levels(axis: Axis, zero: int, constant: int) -> Axis:
    """An axis of a result, by what becomes of zeros and of constants."""
    if axis.ids is None:
        return axis
    table = np.array([BAD, ANY, constant, zero], np.int8)
    return Axis(axis.ids, "", table[axis.levels])


def _result(
    walk: Follower, eqn: Any, value: Value, gone: Collection[int], to: tuple[int, int]
) -> list[Axis]:
    """The axes of a value, of which some are looked at as a whole."""
    why = f"`{eqn.primitive.name}` goes over it"
    out = []
    for at, axis in enumerate(value.axes):
        out.append(walk.stay(axis, why) if at in gone else _levels(axis, *to))
    return out


def _whole(value: Value, to: tuple[int, int]) -> np.ndarray:
    return np.array([BAD, ANY, to[1], to[0]], np.int8)[value.whole]


@rule("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor")
def _reduce(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """The axes that are summed over have to stay."""
    [value], gone = inputs, set(eqn.params["axes"])
    axes = _result(walk, eqn, value, gone, (ZERO, CONSTANT))
    left = tuple(axis for at, axis in enumerate(axes) if at not in gone)
    return [Value(left, _whole(value, (ZERO, CONSTANT)), source=value.source)]


@rule("argmax argmin")
def _where(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """As a maximum; what is found are positions."""
    [value], gone = inputs, set(eqn.params["axes"])
    axes = _result(walk, eqn, value, gone, (CONSTANT, CONSTANT))
    left = tuple(axis for at, axis in enumerate(axes) if at not in gone)
    return [Value(left, _whole(value, (CONSTANT, CONSTANT)))]


@rule("reduce")
def _any_reduction(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """A reduction by a function of the user's, of several operands."""
    gone = set(eqn.params.get("dimensions", ()))
    count = len(eqn.outvars)
    given = inputs[:count]
    axes = [walk.unite(same) for same in zip(*(v.axes for v in given), strict=True)]
    both = Value(tuple(axes), given[0].whole)
    axes = _result(walk, eqn, both, gone, (ANY, ANY))
    left = tuple(axis for at, axis in enumerate(axes) if at not in gone)
    return [Value(left, np.minimum(both.whole, np.int8(ANY))) for _ in range(count)]


@rule("cumsum cumprod cummax cummin cumlogsumexp")
def _cumulated(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """The axis along which it runs has to stay."""
    [value] = inputs
    to = (ANY, ANY) if eqn.primitive.name == "cumlogsumexp" else (ZERO, ANY)
    axes = _result(walk, eqn, value, {eqn.params["axis"]}, to)
    return [Value(tuple(axes), _whole(value, to), source=value.source)]


@rule("sort")
def _sort(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """The axis that is sorted has to stay; the others of all operands go together."""
    axes = [walk.unite(same) for same in zip(*(v.axes for v in inputs), strict=True)]
    both = Value(tuple(axes), inputs[0].whole)
    axes = _result(walk, eqn, both, {eqn.params["dimension"]}, (ANY, ANY))
    return [Value(tuple(axes), np.minimum(v.whole, np.int8(ANY))) for v in inputs]


@rule("top_k approx_top_k")
def _top(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """The axis that is searched has to stay."""
    [value] = inputs
    last = len(value.axes) - 1
    along = eqn.params.get("axis", eqn.params.get("reduction_dimension", last))
    axes = _result(walk, eqn, value, {along % (last + 1)}, (ANY, ANY))
    return [Value(tuple(axes), _whole(value, (ANY, ANY)))] * 2


@rule("reduce_window_max reduce_window_min reduce_window_sum reduce_window")
def _windows(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Axes with a window of more than one have to stay."""
    value, params = inputs[0], eqn.params
    ndim = len(value.axes)
    window = params["window_dimensions"]
    each = [
        params.get("window_strides") or (1,) * ndim,
        params.get("base_dilation") or (1,) * ndim,
        params.get("padding") or ((0, 0),) * ndim,
    ]
    gone = {
        at
        for at in range(ndim)
        if window[at] != 1 or (each[0][at], each[1][at]) != (1, 1) or any(each[2][at])
    }
    padded = any(map(any, each[2])) or any(n != 1 for n in each[1])
    to = (ANY, ANY)
    if eqn.primitive.name in ("reduce_window_max", "reduce_window_min"):
        to = (ZERO, CONSTANT)  # what is put around is no extremum
    elif eqn.primitive.name == "reduce_window_sum":
        to = (ZERO, ANY if padded else CONSTANT)
    wide = any(n >= window[at] for at, pair in enumerate(each[2]) for n in pair)
    if any(n != 1 for n in each[1]) or (wide and padded):
        to = (ANY, ANY)  # some windows may see nothing
    axes = _result(walk, eqn, value, gone, to)
    count = len(eqn.outvars)
    if count > 1:
        why = f"`{eqn.primitive.name}` of several operands"
        axes = [walk.stay(axis, why) for axis in axes]
        for other in inputs[1:]:
            for axis in other.axes:
                walk.stay(axis, why)
    return [Value(tuple(axes), _whole(value, to)) for _ in range(count)]
