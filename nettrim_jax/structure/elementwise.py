"""Rules of operations that treat every entry alike.

Knows these operations; knows no program.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nettrim_jax.structure.registry import Follower, rule
from nettrim_jax.structure.values import BAD, CONSTANT, ZERO, Axis, Value, lowest

# of zeros they make zero
THROUGH_ZERO = (
    "add add_any sub neg sign abs sqrt cbrt tan sin sinh asin asinh atan atanh tanh "
    "erf erf_inv expm1 log1p floor ceil round real imag conj square copy copy_p "
    "convert_element_type reduce_precision name stop_gradient or xor "
    "shift_left shift_right_logical shift_right_arithmetic bitcast_convert_type "
    "population_count"
)
# of a zero they make infinity
AT_ZERO = "log rsqrt lgamma digamma"
OTHERS = (
    "exp exp2 logistic cos cosh acos acosh erfc atan2 nextafter rem is_finite clz "
    "eq ne lt le gt ge eq_to lt_to le_to complex igamma igammac "
    "bessel_i0e bessel_i1e polygamma zeta regularized_incomplete_beta "
    "igamma_grad_a"
)
SAME = "copy copy_p convert_element_type reduce_precision name stop_gradient"
Levels = Sequence[np.ndarray]


def _through_zero(eqn: Any, inputs: Sequence[Value], levels: Levels) -> np.ndarray:
    return lowest(levels)


def _other(eqn: Any, inputs: Sequence[Value], levels: Levels) -> np.ndarray:
    return np.minimum(lowest(levels), np.int8(CONSTANT))


def _at_zero(eqn: Any, inputs: Sequence[Value], levels: Levels) -> np.ndarray:
    least = lowest(levels)
    return np.where(least == ZERO, np.int8(BAD), least)


def _mul(eqn: Any, inputs: Sequence[Value], levels: Levels) -> np.ndarray:
    one, other = levels
    zero = (one == ZERO) | (other == ZERO)
    least = np.minimum(one, other)
    return np.where(zero & (least != BAD), np.int8(ZERO), least)


def _div(eqn: Any, inputs: Sequence[Value], levels: Levels) -> np.ndarray:
    one, other = levels
    least = np.minimum(one, other)
    out = np.where((one == ZERO) & (least != BAD), np.int8(ZERO), least)
    return np.where(other == ZERO, np.int8(BAD), out)


def _power(eqn: Any, inputs: Sequence[Value], levels: Levels) -> np.ndarray:
    power = eqn.params.get("y")
    if eqn.primitive.name == "pow":
        power = inputs[1].number
    zero = levels[0] == ZERO
    at_zero = BAD if power is None or power < 0 else CONSTANT if power == 0 else ZERO
    least = np.minimum(lowest(levels), np.int8(CONSTANT))
    return np.where(zero, np.int8(at_zero), least)


def _between(eqn: Any, inputs: Sequence[Value], levels: Levels) -> np.ndarray:
    """Of the largest and smallest of some: zero stays zero beside some numbers."""
    name, least = eqn.primitive.name, lowest(levels)
    numbers = [value.number for value in inputs]
    if name == "clamp":
        low, _, high = numbers
        beside = low is not None and high is not None and low <= 0 <= high
        mine = levels[1]
    else:
        beside, mine = False, least
        for k, number in enumerate(numbers):
            if number is not None:
                beside = number <= 0 if name == "max" else number >= 0
                mine = levels[1 - k]
    return np.where((mine == ZERO) & beside & (least != BAD), np.int8(ZERO), least)


def _select(eqn: Any, inputs: Sequence[Value], levels: Levels) -> np.ndarray:
    zero = lowest(levels[1:]) == ZERO
    return np.where(zero & (levels[0] != BAD), np.int8(ZERO), lowest(levels))


LEVELS: dict[str, Callable[..., np.ndarray]] = {
    **dict.fromkeys(THROUGH_ZERO.split(), _through_zero),
    **dict.fromkeys(AT_ZERO.split(), _at_zero),
    **dict.fromkeys(OTHERS.split(), _other),
    "mul": _mul,
    "div": _div,
    "integer_pow": _power,
    "pow": _power,
    "max": _between,
    "min": _between,
    "clamp": _between,
    "select_n": _select,
    "and": _mul,
    "not": _other,
}


@rule(" ".join(LEVELS))
def _elementwise(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """All operands are indexed alike; what is of size one goes with any index."""
    shape, make = eqn.outvars[0].aval.shape, LEVELS[eqn.primitive.name]
    shapes = [var.aval.shape for var in eqn.invars]
    axes = []
    for at, size in enumerate(shape):
        mine, levels = [], []
        for value, own in zip(inputs, shapes, strict=True):
            if len(own) == len(shape) and (own[at] == size or own[at] != 1):
                mine.append(value.axes[at])
                levels.append(mine[-1].levels)
                continue
            if len(own) == len(shape):
                why = f"`{eqn.primitive.name}` repeats its one index"
                walk.stay(value.axes[at], why)
            levels.append(value.whole[:, None])
        axis = walk.unite(mine)
        if axis.ids is not None:
            axis = Axis(axis.ids, "", make(eqn, inputs, levels))
        axes.append(axis)
    whole = make(eqn, inputs, [value.whole for value in inputs])
    if eqn.primitive.name in SAME.split():
        return [_same(eqn, inputs[0], axes, whole)]
    _note_bias(walk, eqn, inputs)
    return [Value(tuple(axes), whole, source=_source(inputs))]


def _same(eqn: Any, value: Value, axes: list[Axis], whole: Any) -> Value:
    number = value.number
    if number is not None and "new_dtype" in eqn.params:
        number = float(np.asarray(number).astype(eqn.params["new_dtype"]))
    return dataclasses.replace(value, axes=tuple(axes), whole=whole, number=number)


def _source(inputs: Sequence[Value]) -> int | None:
    """The leaf that a result is computed from, if no data are in it."""
    if any(v.source is None and v.number is None for v in inputs):
        return None
    sources = [v for v in inputs if v.source is not None]
    sources.sort(key=lambda value: -len(value.axes))
    return sources[0].source if sources else None


def _note_bias(walk: Follower, eqn: Any, inputs: Sequence[Value]) -> None:
    """A leaf that is added to the result of a linear operation is its bias."""
    if eqn.primitive.name not in ("add", "add_any"):
        return
    for one, other in (inputs, inputs[::-1]):
        if one.response is not None and other.leaf is not None:
            walk.biased(one.response, other)


@rule("optimization_barrier")
def _barrier(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Every operand as it is."""
    return [value.moved(value.axes) for value in inputs]
