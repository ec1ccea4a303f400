"""Chooses how much a layer is kept from overfitting its rows, by comparing errors.

Knows numbers; knows no layer.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from nettrim_jax.typing import Array

RIDGES = (1e-3, 1e-2, 0.1, 0.3, 1.0)
PLAINS = (0.0, 0.3, 1.0)
ASIDE = 4  # one row in ``ASIDE`` is kept aside to compare them
CLOSE = 0.005  # relative difference up to which the larger value is preferred
OPEN = -1.0  # stands for a term that is to be chosen; not NaN, for jax_debug_nans

Out = TypeVar("Out")


class Parts(NamedTuple):
    """A layer's terms against overfitting, each ``OPEN`` if it is to be chosen."""

    ridge: Array  # []
    plain: Array  # []


class Fit(NamedTuple):
    """A layer's answer, and the terms against overfitting that led to it."""

    W: Array  # [b, d_in, d_out]
    move: Array  # [b, d_out], the change of the biases
    parts: Parts  # the plain part is that of each lane, [b]


def is_open(part: Array) -> Array:
    """Whether a term is to be chosen."""
    return part < 0


def default(given: Parts, clips: bool) -> Parts:
    """The given parts, and where there are none those in the middle."""
    middle = RIDGES[len(RIDGES) // 2], PLAINS[len(PLAINS) // 2] if clips else 1.0
    filled = (jnp.where(is_open(a), b, a) for a, b in zip(given, middle, strict=True))
    return Parts(*filled)


def search(
    given: Parts,
    clips: bool,
    stage: Callable[[Parts, Array], tuple[Array, Out]],
    out: Out,
    answer: bool = False,
) -> tuple[Parts, Out]:
    """Tries the ridges, then the plain parts, with one copy of ``stage``.

    Args:
      given: the parts; those that are ``OPEN`` are chosen.
      clips: whether a ReLU or the like follows; else the plain part does not matter.
      stage: a function of the parts, and of whether this is the answer, which returns
        the squared error on the rows kept aside, and more.
      out: what more it returns, of any values.
      answer: whether the last stage is the answer, for the parts that are chosen.

    Returns:
      The parts, and what more the last stage returned.
    """
    dtype = given.ridge.dtype
    if not clips:
        given = given._replace(plain=jnp.ones((), dtype))
    ridges, plains = jnp.asarray(RIDGES, dtype), jnp.asarray(PLAINS, dtype)
    first, count = len(RIDGES), len(RIDGES) + len(PLAINS)
    open_ridge, open_plain = is_open(given.ridge), is_open(given.plain)
    middle = default(given, clips)

    def chosen(off: Array) -> Parts:
        ridge = _best(ridges, off[:first])
        plain = _best(plains, off[first:])
        return Parts(
            jnp.where(open_ridge, ridge, given.ridge),
            jnp.where(open_plain, plain, given.plain),
        )

    def after(at: Array) -> Array:
        return jnp.where((at == first) & ~open_plain, count, at)

    def running(carry: tuple) -> Array:
        return carry[0] < count + answer

    def body(carry: tuple) -> tuple:
        at, off, _ = carry
        ridge, plain = chosen(off)
        tried = ridges[jnp.minimum(at, first - 1)]
        ridge = jnp.where(at < first, tried, ridge)
        tried = plains[jnp.clip(at - first, 0, len(PLAINS) - 1)]
        plain = jnp.where(at < count, tried, plain)
        plain = jnp.where(at < first, middle.plain, plain)
        error, out = stage(Parts(ridge, plain), at == count)
        off = off.at[jnp.minimum(at, count - 1)].set(
            jnp.where(at < count, error, off[-1]).astype(dtype)
        )
        return after(at + 1), off, out

    start = after(jnp.where(open_ridge, 0, first).astype(jnp.int32))
    off = jnp.zeros((count,), dtype)
    _, off, out = jax.lax.while_loop(running, body, (start, off, out))
    return chosen(off), out


def _best(tried: Array, off: Array) -> Array:
    """The last of the values that are about as good as the best; it overfits least."""
    off = jnp.where(jnp.isfinite(off), off, jnp.inf)
    good = off <= (1 + CLOSE) ** 2 * jnp.min(off)
    return tried[len(tried) - 1 - jnp.argmax(good[::-1])]
