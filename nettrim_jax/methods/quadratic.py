"""The quadratic loss of ``Reconstruct``, from moments and the weights of errors.

Knows arrays; knows no pattern and no loop.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax._numerics import after, matmul, norm
from nettrim_jax.typing import Array

LOST = 1e-3  # share of the spread of an input that rounding may take
POWER, SHORT = 20, 1.05  # steps of a power iteration, and a factor for their shortfall
FLOOR = 0.01  # least energy of an input, relative to their mean energy


class Observed(NamedTuple):
    """One layer's lanes: rows with their target, and the moments of all rows."""

    X: Array  # [b, n, d_in]
    P: Array  # [b, n, d_out], the trained response before the ReLU
    P0: Array  # [b, n, d_out], the trained weights' response to X
    valid: Array  # [b, n], the rows that count
    moments: Array  # [b, d_in + 1, d_in + 1], of the inputs and a one, over all rows
    W0: Array  # [b, d_in, d_out]
    coupling: Array | None = None  # [b, d_out, d_out], weights of the errors


class Coupling(NamedTuple):
    """The weights of the errors of pairs of units, with their eigendecomposition."""

    M: Array  # [b, d_out, d_out]
    e: Array  # [b, d_out]
    Q: Array  # [b, d_out, d_out]


def coupling_of(M: Array | None) -> Coupling | None:
    """The coupling with its eigendecomposition; None if all errors count alike."""
    if M is None:
        return None
    e, Q = jnp.linalg.eigh(M)
    return Coupling(M, jnp.maximum(e, 0), Q)


class Quadratic(NamedTuple):
    """The quadratic loss over all rows, with inputs divided by their size."""

    X: Array  # [b, n, d_in], centred if the bias is free, divided by ``size``
    A: Array  # [b, d_in, d_in]
    e: Array  # [b, d_in], its eigenvalues
    Q: Array  # [b, d_in, d_in], its eigenvectors
    size: Array  # [b, d_in]
    mean: Array  # [b, d_in], zero if the bias is fixed
    share: Array  # [b], the number of rows for which one of X counts
    least: Array  # [b], the least plain part where moments are of more rows than X
    coupling: Coupling | None


def _mean(X: Array, valid: Array, here: Array) -> Array:
    return (jnp.sum(jnp.where(valid, X, 0), axis=1) / here[:, None])[:, None, :]


def quadratic_of(seen: Observed, free: bool, done: Array | None = None) -> Quadratic:
    """The quadratic loss of one layer's lanes; centred if the bias is free.

    Its loops start only once ``done`` is computed, see :func:`_numerics.after`.
    """
    sums, count = seen.moments[:, -1, :-1], seen.moments[:, -1, -1]
    valid, here = seen.valid[:, :, None], jnp.sum(seen.valid, axis=1)
    here = jnp.maximum(here, 1).astype(count.dtype)
    count = jnp.maximum(count, here)
    # there are no rows but these, or the mean is so large that moments lose the spread
    apart = jnp.where(valid, seen.X - _mean(seen.X, valid, here), 0)
    raw = jnp.diagonal(seen.moments, axis1=1, axis2=2)[:, :-1] / count[:, None]
    spread = jnp.sum(apart**2, axis=1) / here[:, None]
    eps = jnp.finfo(count.dtype).eps
    lost = (eps * raw > LOST * spread) & (spread > (4 * eps) ** 2 * raw)
    near = (count == here) | (jnp.any(lost, axis=1) & free)
    mean = sums / count[:, None] if free else jnp.zeros_like(sums)
    X = jnp.where(valid, seen.X - mean[:, None, :], 0)
    if free:  # centres again, as the first mean is off by its rounding
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
    e, Q = jnp.linalg.eigh(A if done is None else after(A, done))
    # only rounding makes an eigenvalue negative
    e, share = jnp.maximum(e, 0), count / here
    X = X / size[:, None, :]
    excess = _excess(X, e, Q, share)
    M = seen.coupling
    coupling = coupling_of(M if M is None else after(M, excess))
    least = jnp.where(near, 0, jnp.maximum(1 - 1 / jnp.maximum(excess, 1), 0))
    return Quadratic(X, A, e, Q, size, mean, share, least, coupling)


def _excess(X: Array, e: Array, Q: Array, share: Array) -> Array:
    """The largest ratio of the moments of the rows in ``X`` to those of all, ``[b]``.

    It comes from a power iteration, which falls a little short.
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
