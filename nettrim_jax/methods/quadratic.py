"""The curvature of an exact budget's loss: second moments, and what errors count for.

Knows arrays only: no pattern and no loop.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax._numerics import matmul, norm
from nettrim_jax.typing import Array

LOST = 1e-3  # of the spread of an input, that rounding may take
POWER, SHORT = 20, 1.05  # steps of a power iteration, and what they fall short
FLOOR = 0.01  # of the mean energy of the inputs: what a rare input counts at least


class Observed(NamedTuple):
    """One layer's lanes: rows, what is wanted of them, and all rows' moments."""

    X: Array  # [b, n, d_in]
    P: Array  # [b, n, d_out], the trained answer before the ReLU
    P0: Array  # [b, n, d_out], what the trained weights answer to X
    valid: Array  # [b, n], the rows that count
    moments: Array  # [b, d_in + 1, d_in + 1], of the inputs and a one, over all rows
    W0: Array  # [b, d_in, d_out]
    coupling: Array | None = None  # [b, d_out, d_out], what errors of units count for


class Coupling(NamedTuple):
    """What errors of units count for, with its eigenvalues and eigenvectors."""

    M: Array  # [b, d_out, d_out]
    e: Array  # [b, d_out]
    Q: Array  # [b, d_out, d_out]


def coupling_of(M: Array | None) -> Coupling | None:
    """The coupling ``[b, d_out, d_out]`` with its spectrum; None where all is alike."""
    if M is None:
        return None
    e, Q = jnp.linalg.eigh(M)
    return Coupling(M, jnp.maximum(e, 0), Q)


class Quadratic(NamedTuple):
    """The curvature of the plain loss over all rows, in units of the inputs' size."""

    X: Array  # [b, n, d_in], centred if the bias is free, divided by ``size``
    A: Array  # [b, d_in, d_in]
    e: Array  # [b, d_in], its eigenvalues
    Q: Array  # [b, d_in, d_in], its eigenvectors
    size: Array  # [b, d_in]
    mean: Array  # [b, d_in], zero if the bias is fixed
    share: Array  # [b], what a row counts for
    least: Array  # [b], the plain part that some rows need beside moments of all
    coupling: Coupling | None


def _mean(X: Array, valid: Array, here: Array) -> Array:
    return (jnp.sum(jnp.where(valid, X, 0), axis=1) / here[:, None])[:, None, :]


def quadratic_of(seen: Observed, free: bool) -> Quadratic:
    """The curvature of what one layer's lanes saw; centred if the bias is free."""
    sums, count = seen.moments[:, -1, :-1], seen.moments[:, -1, -1]
    valid, here = seen.valid[:, :, None], jnp.sum(seen.valid, axis=1)
    here = jnp.maximum(here, 1).astype(count.dtype)
    count = jnp.maximum(count, here)
    # no rows but those in hand, or so large a mean that only they can be centred
    apart = jnp.where(valid, seen.X - _mean(seen.X, valid, here), 0)
    raw = jnp.diagonal(seen.moments, axis1=1, axis2=2)[:, :-1] / count[:, None]
    spread = jnp.sum(apart**2, axis=1) / here[:, None]
    eps = jnp.finfo(count.dtype).eps
    lost = (eps * raw > LOST * spread) & (spread > (4 * eps) ** 2 * raw)
    near = (count == here) | (jnp.any(lost, axis=1) & free)
    mean = sums / count[:, None] if free else jnp.zeros_like(sums)
    X = jnp.where(valid, seen.X - mean[:, None, :], 0)
    if free:  # once more: the first mean is off by its rounding
        rest = jnp.where(near[:, None], jnp.sum(X, axis=1) / here[:, None], 0)
        mean, X = mean + rest, jnp.where(valid, X - rest[:, None, :], 0)
    H = seen.moments[:, :-1, :-1]
    H = H - (count[:, None] * mean)[:, :, None] * mean[:, None, :]
    mine = (count / here)[:, None, None] * matmul(X.transpose(0, 2, 1), X)
    H = jnp.where(near[:, None, None], mine, H)
    energy = jnp.maximum(jnp.diagonal(H, axis1=1, axis2=2), 0)
    floor = FLOOR * jnp.mean(energy, axis=1, keepdims=True)
    size = jnp.sqrt(energy + jnp.where(floor > 0, floor, 1))
    A = H / (size[:, :, None] * size[:, None, :])
    e, Q = jnp.linalg.eigh(A)
    # rounding leaves no direction that costs less than nothing
    e, share = jnp.maximum(e, 0), count / here
    X, coupling = X / size[:, None, :], coupling_of(seen.coupling)
    excess = _excess(X, e, Q, share)
    least = jnp.where(near, 0, jnp.maximum(1 - 1 / jnp.maximum(excess, 1), 0))
    return Quadratic(X, A, e, Q, size, mean, share, least, coupling)


def _excess(X: Array, e: Array, Q: Array, share: Array) -> Array:
    """By how much the rows in hand exceed the moments of all, where most, ``[b]``.

    By power iteration, which stops a little short.
    """
    floor = jnp.finfo(e.dtype).eps * jnp.max(e, axis=1, keepdims=True)
    root = jnp.where(e > 8 * floor, e, jnp.inf) ** -0.5

    def more(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        v = carry[0]
        y = matmul(X, matmul(Q, (root * v)[:, :, None]))
        v = root * matmul(Q.transpose(0, 2, 1), matmul(X.transpose(0, 2, 1), y))[..., 0]
        size = norm(v, axis=1)
        return (v / jnp.where(size > 0, size, 1)[:, None], share * size), None

    start = jnp.full_like(e, e.shape[1] ** -0.5), jnp.zeros_like(share)
    return SHORT * jax.lax.scan(more, start, length=POWER)[0][1]
