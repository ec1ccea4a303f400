"""Few values that stand for many weights: where they start, and which is nearest.

Values are ``[g, k]`` and ascend: one row for all units, or one for each.
Knows arrays; knows no method.
"""

import jax
import jax.numpy as jnp

from nettrim_jax.typing import Array

TURNS = 100  # most steps of k-means; nearly all are done after twenty


def nearest(values: Array, W: Array) -> Array:
    """The place of the value that is nearest to each weight, ``[d_in, d_out]``."""
    middles = (values[:, 1:] + values[:, :-1]) / 2
    return jnp.sum(W[:, :, None] > middles[None], axis=2, dtype=jnp.int32)


def chosen(values: Array, places: Array) -> Array:
    """The values at these places, ``[d_in, d_out]``."""
    if len(values) == 1:
        return values[0][places]
    return jnp.take_along_axis(values.T, places, axis=0)


def sums(A: Array, places: Array, like: Array) -> Array:
    """The sums of entries ``[d_in, d_out]`` over those with one value, ``[g, k]``."""
    units = jnp.arange(A.shape[1], dtype=jnp.int32)[None]
    found = jnp.zeros((like.shape[1], A.shape[1]), A.dtype).at[places, units].add(A)
    return found.T if len(like) > 1 else jnp.sum(found, axis=1)[None]


def ascending(values: Array, places: Array) -> tuple[Array, Array]:
    """The same values in ascending order, and the places that they have then."""
    rank = jnp.argsort(jnp.argsort(values, axis=1), axis=1).astype(jnp.int32)
    return jnp.sort(values, axis=1), chosen(rank, places)


def start(W: Array, mass: Array, count: int) -> Array:
    """Values to start from: one for every weight if they are enough, else a grid.

    Values at equal distances stay far apart under k-means, where there are few weights,
    too. So their codes are of very unequal number and take few bits.

    Args:
      W: the weights of one group, ``[n]``.
      mass: how much each counts, ``[n]``; zero for what is no weight.
      count: the number of values.

    Returns:
      The values, ``[count]``; the last ones are alike if there are fewer weights.
    """
    order = jnp.argsort(W)
    W, mass = W[order], mass[order]
    counts = mass > 0
    # what is no weight is zero, as no weight is, and so stands together
    new = counts & jnp.concatenate([jnp.ones(1, bool), W[1:] != W[:-1]])
    rank = jnp.cumsum(new, dtype=jnp.int32) - 1
    low = jnp.min(jnp.where(counts, W, jnp.inf), initial=jnp.inf)
    high = jnp.max(jnp.where(counts, W, -jnp.inf), initial=-jnp.inf)
    some = low <= high
    low, high = jnp.where(some, low, 0), jnp.where(some, high, 0)
    each = jnp.full(count, high).at[jnp.where(new, rank, count)].set(W, mode="drop")
    # the middles of as many equal parts, which has a meaning for one value, too
    shares = (jnp.arange(count, dtype=W.dtype) + 0.5) / count
    return jnp.where(rank[-1] < count, each, low + shares * (high - low))


def k_means(W: Array, mass: Array, values: Array) -> Array:
    """Moves values to the means of the weights nearest to them, until they stay.

    Args:
      W: the weights of one group, ``[n]``.
      mass: how much each counts, ``[n]``.
      values: ``[count]``, ascending.

    Returns:
      The values, ``[count]``; one that is nearest to no weight stays.
    """
    order = jnp.argsort(W)
    W, mass = W[order], mass[order]
    zero = jnp.zeros(1, W.dtype)
    sizes = jnp.concatenate([zero, jnp.cumsum(mass)])
    totals = jnp.concatenate([zero, jnp.cumsum(mass * W)])
    # a difference of sums is rounding below this
    least = 4 * jnp.finfo(W.dtype).eps * sizes[-1]

    def move(values: Array) -> Array:
        middles = (values[1:] + values[:-1]) / 2
        ends = jnp.searchsorted(W, middles, side="right").astype(jnp.int32)
        ends = jnp.concatenate([jnp.zeros(1, jnp.int32), ends])
        ends = jnp.append(ends, jnp.int32(len(W)))
        size, total = jnp.diff(sizes[ends]), jnp.diff(totals[ends])
        full = size > least
        new = jnp.where(full, total / jnp.where(full, size, 1), values)
        # rounding of the sums must not put values in another order
        low, high = W[ends[:-1]], W[jnp.maximum(ends[1:] - 1, 0)]
        return jnp.where(full, jnp.clip(new, low, high), values)

    def going(carry: tuple[Array, Array, Array]) -> Array:
        before, values, turn = carry
        return jnp.any(before != values) & (turn < TURNS)

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, values, turn = carry
        return values, move(values), turn + 1

    first = values, move(values), jnp.ones((), jnp.int32)
    return jax.lax.while_loop(going, step, first)[1]
