"""The highest of some scores, by a search for the value of the last one.

Knows arrays only.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax.typing import Array, wide

FEW = 16  # so many are faster compared one with another


def highest(score: Array, count: Any, axis: int) -> Array:
    """Marks the ``count`` highest along an axis; among equals the first.

    By a search for the value of the last one, because a sort of all scores costs more
    than the rest of a solver's step.
    """
    size = score.shape[axis]
    if isinstance(count, int) and not 0 < count < size:
        return jnp.full(score.shape, count > 0)
    count = jnp.asarray(count, jnp.int32)
    # what is not a number is never chosen before what is
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
        low, high = ends  # of a value that the count-th highest reaches, no other does
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
    """How many are higher, or as high and before, along a short axis."""
    score = jnp.moveaxis(score, axis, 0)
    mine, other = score[:, None], score[None]
    first = np.arange(len(score))[None, :] < np.arange(len(score))[:, None]
    first = first.reshape(first.shape + (1,) * (score.ndim - 1))
    beats = (other > mine) | ((other == mine) & first)
    return jnp.moveaxis(jnp.sum(beats, axis=1, dtype=jnp.int32), 0, axis)


def _ordered(score: Array) -> Array:
    """Integers in the order of the scores, of which there are as many as numbers."""
    score = jnp.where(score == 0, jnp.zeros_like(score), score)  # there is one zero
    kind = jnp.int64 if score.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(score, kind)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(kind).max, bits)
