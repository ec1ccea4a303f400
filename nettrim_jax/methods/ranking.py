"""Marks the highest of some scores, by a search for the value of the last of them.

Knows arrays; knows no pattern.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax.typing import Array, wide

FEW = 16  # number of scores up to which comparing all pairs is faster


def highest(score: Array, count: Any, axis: int) -> Array:
    """Marks the ``count`` highest along an axis, and the first among equals.

    It searches for the value of the last of them, because a sort of all scores costs
    more than the rest of a solver's step.
    """
    size = score.shape[axis]
    if isinstance(count, int) and not 0 < count < size:
        return jnp.full(score.shape, count > 0)
    count = jnp.asarray(count, jnp.int32)
    # NaN is never chosen before a number
    score = score.astype(wide(score.dtype))
    score = jnp.where(jnp.isnan(score), -jnp.inf, score)
    if size <= FEW:
        return _beaten(score, axis) < count
    order = _ordered(score)
    most = jnp.max(order, axis=axis, keepdims=True)
    least = jnp.min(order, axis=axis, keepdims=True)

    def at_least(value: Array) -> Array:
        return jnp.sum(order >= value, axis=axis, keepdims=True, dtype=jnp.int32)

    def narrow(ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends  # the value of the count-th highest is between them
        # their mean, rounded up, without overflow
        middle = (low & high) + ((low ^ high) >> 1) + ((low ^ high) & 1)
        found = at_least(middle)
        less = (found < count).astype(order.dtype)
        high = jnp.where(found > count, high, middle - less)
        return jnp.where(found >= count, middle, low), high

    def wide_open(ends: tuple[Array, Array]) -> Array:
        return jnp.any(ends[0] < ends[1])

    last, _ = jax.lax.while_loop(wide_open, narrow, (least, most))

    def first_of_equals() -> Array:
        above, equal = order > last, order == last
        room = count - jnp.sum(above, axis=axis, keepdims=True, dtype=jnp.int32)
        return above | (equal & (jnp.cumsum(equal, axis=axis, dtype=jnp.int32) <= room))

    exact = jnp.all(at_least(last) == count)
    return jax.lax.cond(exact, lambda: order >= last, first_of_equals)


def _beaten(score: Array, axis: int) -> Array:
    """The number of scores before each one in the ranking, along a short axis."""
    score = jnp.moveaxis(score, axis, 0)
    mine, other = score[:, None], score[None]
    first = np.arange(len(score))[None, :] < np.arange(len(score))[:, None]
    first = first.reshape(first.shape + (1,) * (score.ndim - 1))
    beats = (other > mine) | ((other == mine) & first)
    return jnp.moveaxis(jnp.sum(beats, axis=1, dtype=jnp.int32), 0, axis)


def _ordered(score: Array) -> Array:
    """Integers in the order of the scores, made from the bits of these."""
    score = jnp.where(score == 0, jnp.zeros_like(score), score)  # -0 equals 0
    kind = jnp.int64 if score.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(score, kind)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(kind).max, bits)
