"""Marks the highest of some scores, by a search for the value of the last of them.

Knows arrays; knows no pattern.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax.typing import Array, wide

RAMP = 2.0**-12  # share by which the last of equal scores ranks below the first
FEW = 16  # number of scores up to which comparing all pairs is faster


class _Ends(NamedTuple):
    """What the value and the place of the last of the highest are between."""

    low: Array  # at least as many are from this value on
    high: Array  # and this is the most that it can be
    after: Array  # the place of the last one is behind this number of places
    end: Array  # and within this one


def highest(score: Array, count: Any, axis: int) -> Array:
    """Marks the ``count`` highest along an axis, and the first among equals.

    It searches for the value of the last of them, because a sort of all scores costs
    more than the rest of a solver's step. NumPy's arrays are ranked by NumPy.
    """
    size = score.shape[axis]
    if isinstance(score, np.ndarray):
        return _chosen(score, int(np.clip(count, 0, size)), axis)
    if isinstance(count, int) and not 0 < count < size:
        return jnp.full(score.shape, count > 0)
    count = jnp.asarray(count, jnp.int32)
    # NaN is never chosen before a number
    score = score.astype(wide(score.dtype))
    score = jnp.where(jnp.isnan(score), -jnp.inf, score)
    if size <= FEW:
        return _beaten(score, axis) < count
    order = _ordered(score)
    place = jax.lax.broadcasted_iota(jnp.int32, score.shape, axis % score.ndim)

    def marked(value: Array, end: Array) -> Array:
        return (order > value) | ((order == value) & (place < end))

    def narrow(ends: _Ends) -> _Ends:
        # first the value of the last of them, then the place among its equals
        low, high, after, end = ends
        value = low < high
        # their mean, rounded up, without overflow
        middle = (low & high) + ((low ^ high) >> 1) + ((low ^ high) & 1)
        between = after + (end - after) // 2
        # one body for both, since the compiler takes long for each
        here = marked(jnp.where(value, middle, low), jnp.where(value, size, between))
        found = jnp.sum(here, axis=axis, keepdims=True, dtype=jnp.int32)
        enough, exact = found >= count, found == count
        less = (~enough).astype(order.dtype)
        return _Ends(
            jnp.where(value & enough, middle, low),
            jnp.where(value & (exact | ~enough), middle - less, high),
            # with as many as asked for no place is left to find
            jnp.where(
                value,
                jnp.where(exact, size - 1, after),
                jnp.where(enough, after, between),
            ),
            jnp.where(value | ~enough, end, between),
        )

    def wide_open(ends: _Ends) -> Array:
        return jnp.any((ends.low < ends.high) | (ends.end - ends.after > 1))

    least = jnp.min(order, axis=axis, keepdims=True)
    most = jnp.max(order, axis=axis, keepdims=True)
    none = jnp.zeros_like(least, jnp.int32)
    start = _Ends(least, most, none, none + size)
    found = jax.lax.while_loop(wide_open, narrow, start)
    return marked(found.low, found.end) & (count > 0)


def about_highest(score: Array, count: Any, slack: float) -> Array:
    """Marks about ``count`` of the highest of all scores, which are not negative.

    It takes half as many passes over the scores as :func:`highest`. Equal scores are
    ranked roughly by their place; zeros are marked all or none.

    Args:
      score: any shape.
      count: number of scores to mark; may be traced.
      slack: the share of ``count`` by which the number of marks may be off.
    """
    size = score.size
    count = jnp.asarray(count, jnp.int32)
    off = (slack * count.astype(jnp.float32)).astype(jnp.int32)
    # those of weights that may not be left are below zero
    score = jnp.maximum(score, 0)
    place = jnp.arange(size, dtype=score.dtype).reshape(score.shape)
    score = score * (1 - RAMP / size * place)
    kind = jnp.int64 if score.dtype == jnp.float64 else jnp.int32
    order = jax.lax.bitcast_convert_type(score, kind)  # numbers of one sign: in order
    top = jax.lax.bitcast_convert_type(jnp.asarray(jnp.inf, score.dtype), kind)

    def narrow(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # at least count are from the low end on, and fewer from the high end on
        ends, found, turn = carry
        width = ends[1] - ends[0]
        line = (found[0] - count) / jnp.maximum(found[0] - found[1], 1)
        line = jnp.where(turn % 3 == 2, 0.5, line)
        step = (line * width.astype(line.dtype)).astype(kind)
        middle = ends[0] + jnp.clip(step, 1, width - 1)
        here = jnp.sum(order >= middle, dtype=jnp.int32)
        near = jnp.abs(here - count) <= off
        up = (here >= count) | near
        low, high = jnp.where(up, middle, ends[0]), jnp.where(up, ends[1], middle)
        high = jnp.where(near, middle + 1, high)
        found = jnp.stack(
            [jnp.where(up, here, found[0]), jnp.where(up, found[1], here)]
        )
        return jnp.stack([low, high]), found, turn + 1

    def wide_open(carry: tuple[Array, Array, Array]) -> Array:
        return carry[0][1] - carry[0][0] > 1

    ends = jnp.stack([jnp.zeros((), kind), top + 1])
    found = jnp.asarray([size, 0], jnp.int32)
    (low, _), _, _ = jax.lax.while_loop(
        wide_open, narrow, (ends, found, jnp.zeros((), jnp.int32))
    )
    return (order >= low) & (count > 0)


def _chosen(score: np.ndarray, count: int, axis: int) -> Any:
    """The ``count`` highest along an axis, as :func:`highest` chooses them."""
    if count in (0, score.shape[axis]):
        return np.full(score.shape, count > 0)
    score = np.where(np.isnan(score), -np.inf, score)
    last = np.partition(score, -count, axis).take([-count], axis)
    over, tied = score > last, score == last
    room = count - over.sum(axis, keepdims=True)
    return over | (tied & (tied.cumsum(axis) <= room))


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
