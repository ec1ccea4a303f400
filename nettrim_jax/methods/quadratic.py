"""The quadratic loss of ``Reconstruct``, from moments and the weights of errors.

Knows arrays; knows no pattern and no loop.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax._numerics import after, matmul, norm, numpy_of, transposed_matmul
from nettrim_jax.typing import Array

LOST = 1e-3  # share of the spread of an input that rounding may take
POWER, SHORT = 20, 1.05  # steps of a power iteration, and a factor for their shortfall
WHOLE = 1024  # number of units up to which all directions of their errors are weighed
DIRECTIONS, TURNS = 256, 4  # number of directions beyond, and of steps to find them
WORTH = 3  # inputs per unit up to which an explicit inverse pays, in three steps
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
    r"""The weights of the errors of pairs of units, :math:`c I + Q (e - c) Q^T`."""

    c: Array  # [b], the weight of all directions but those in Q
    e: Array  # [b, k], weights of the directions
    Q: Array  # [b, d_out, k], directions

    def only_if(self, use: Array) -> "Coupling":
        """The same coupling if it is to be used; otherwise all errors count alike."""
        return self._replace(c=jnp.where(use, self.c, 1), e=jnp.where(use, self.e, 1))

    def times(self, G: Array) -> Array:
        """The product of ``G`` ``[b, d_in, d_out]`` with the weights."""
        c = self.c[:, None, None]
        part = matmul(G, self.Q) * (self.e[:, None, :] - c)
        return c * G + matmul(part, self.Q.transpose(0, 2, 1))


def coupling_of(M: Array | None, done: Array) -> Coupling | None:
    """The coupling; None if all errors count alike.

    Of many units it has the directions of the largest weights, and counts all others by
    their mean. Its loops start only once ``done`` is computed, see
    :func:`_numerics.after`.
    """
    if M is None:
        return None
    M, d_out = after(M, done), M.shape[1]
    if d_out <= WHOLE:
        e, Q = jnp.linalg.eigh(M)
        return Coupling(jnp.ones_like(e[:, 0]), jnp.maximum(e, 0), Q)
    # powers of M turn any directions to those of its largest weights
    Q = jax.random.normal(jax.random.key(0), (*M.shape[:2], DIRECTIONS), M.dtype)
    Q = jax.lax.fori_loop(0, TURNS, lambda _, Q: jnp.linalg.qr(matmul(M, Q))[0], Q)
    small = matmul(Q.transpose(0, 2, 1), matmul(M, Q))
    e, turn = jnp.linalg.eigh((small + small.transpose(0, 2, 1)) / 2)
    rest = jnp.trace(M, axis1=1, axis2=2) - jnp.sum(e, axis=1)
    c = jnp.maximum(rest / (d_out - DIRECTIONS), 0)
    return Coupling(c, jnp.maximum(e, 0), matmul(Q, turn))


class Quadratic(NamedTuple):
    """The quadratic loss over all rows, with inputs divided by their size."""

    X: Array  # [b, n, d_in], centred if the bias is free, divided by ``size``
    valid: Array  # [b, n], the rows that count
    A: Array  # [b, d_in, d_in]
    e: Array  # [b, d_in], its eigenvalues
    Q: Array  # [b, d_in, d_in], its eigenvectors
    size: Array  # [b, d_in]
    mean: Array  # [b, d_in], zero if the bias is fixed
    share: Array  # [b], the number of rows for which one of X counts
    least: Array  # [b], the least plain part where moments are of more rows than X

    def solver(
        self, coupling: Coupling | None, lift: Array, d_out: int
    ) -> Callable[[Array], Array]:
        """Solves ``A W M + lift W = right`` for ``W`` ``[b, d_in, d_out]``."""
        e, Q = self.e, self.Q
        if coupling is None:
            weights = 1 / (e + lift)
            # the inverse takes a product of its own, and saves one in each step
            if e.shape[1] <= WORTH * d_out:
                K = matmul(Q * weights[:, None, :], Q.transpose(0, 2, 1))
                return lambda right: matmul(K, right)
            return lambda right: matmul(
                Q, weights[:, :, None] * transposed_matmul(Q, right)
            )
        curve = 1 / (e[:, :, None] * coupling.e[:, None, :] + lift)
        directions = coupling.Q.transpose(0, 2, 1)

        def along(right: Array, curve: Array) -> Array:
            """The part of the solution along the directions."""
            turned = transposed_matmul(Q, matmul(right, coupling.Q))
            return matmul(matmul(Q, curve * turned), directions)

        if coupling.Q.shape[1] == coupling.Q.shape[2]:
            return lambda right: along(right, curve)
        # the rest counts alike, also along the directions, of which that is taken off
        scale = coupling.c[:, None]
        alike = self._replace(e=scale * e).solver(None, lift, d_out)
        curve = curve - 1 / (scale * e + lift)[:, :, None]
        return lambda right: alike(right) + along(right, curve)


def _mean(X: Array, valid: Array, here: Array) -> Array:
    xp = numpy_of(X)
    return (xp.sum(xp.where(valid, X, 0), axis=1) / here[:, None])[:, None, :]


class Centred(NamedTuple):
    """Rows and moments of lanes, less the mean of the inputs if the bias is free."""

    X: Array  # [b, n, d_in], zero on rows that do not count
    H: Array  # [b, d_in, d_in], over all rows
    mean: Array  # [b, d_in], zero if the bias is fixed
    share: Array  # [b], the number of rows for which one of X counts
    near: Array  # [b], whether the moments are those of X times the share


def centred(seen: Observed, free: bool) -> Centred:
    """The rows and moments, of NumPy's arrays too; centred if the bias is free."""
    xp = numpy_of(seen.X)
    sums, count = seen.moments[:, -1, :-1], seen.moments[:, -1, -1]
    valid, here = seen.valid[:, :, None], xp.sum(seen.valid, axis=1)
    here = xp.maximum(here, 1).astype(count.dtype)
    count = xp.maximum(count, here)
    # there are no rows but these, or the mean is so large that moments lose the spread
    apart = xp.where(valid, seen.X - _mean(seen.X, valid, here), 0)
    raw = xp.diagonal(seen.moments, axis1=1, axis2=2)[:, :-1] / count[:, None]
    spread = xp.sum(apart**2, axis=1) / here[:, None]
    eps = jnp.finfo(count.dtype).eps
    lost = (eps * raw > LOST * spread) & (spread > (4 * eps) ** 2 * raw)
    near = (count == here) | (xp.any(lost, axis=1) & free)
    mean = sums / count[:, None] if free else xp.zeros_like(sums)
    X = xp.where(valid, seen.X - mean[:, None, :], 0)
    if free:  # centres again, as the first mean is off by its rounding
        rest = xp.where(near[:, None], xp.sum(X, axis=1) / here[:, None], 0)
        mean, X = mean + rest, xp.where(valid, X - rest[:, None, :], 0)
    H = seen.moments[:, :-1, :-1]
    H = H - (count[:, None] * mean)[:, :, None] * mean[:, None, :]

    def own(H: Array) -> Array:
        mine = (count / here)[:, None, None] * matmul(X.transpose(0, 2, 1), X)
        return xp.where(near[:, None, None], mine, H)

    # the product is as long as that of all moments, which many rows are summed for
    if xp is jnp:
        H = jax.lax.cond(jnp.any(near), own, lambda H: H, H)
    elif near.any():
        H = own(H)
    return Centred(X, H, mean, count / here, near)


def sizes(H: Array) -> Array:
    """What inputs with these moments are divided by, ``[b, d_in]``."""
    xp = numpy_of(H)
    energy = xp.maximum(xp.diagonal(H, axis1=1, axis2=2), 0)
    floor = FLOOR * xp.mean(energy, axis=1, keepdims=True)
    return xp.sqrt(energy + xp.where(floor > 0, floor, 1))


def quadratic_of(
    seen: Observed, free: bool, clips: bool, done: Array | None = None
) -> Quadratic:
    """The quadratic loss of one layer's lanes; centred if the bias is free.

    Its least plain part is only found where a clip such as a ReLU follows, which alone
    has use for it.

    Its loops start only once ``done`` is computed, see :func:`_numerics.after`.
    """
    parts = centred(seen, free)
    X, H, near, share = parts.X, parts.H, parts.near, parts.share
    size = sizes(H)
    A = H / (size[:, :, None] * size[:, None, :])
    e, Q = jnp.linalg.eigh(A if done is None else after(A, done))
    # only rounding makes an eigenvalue negative
    e = jnp.maximum(e, 0)
    X = X / size[:, None, :]
    if clips:
        # the usual case is that all rows are there, which needs no search
        excess = jax.lax.cond(
            jnp.all(near), jnp.ones_like, lambda share: _excess(X, e, Q, share), share
        )
    else:
        excess = jnp.ones_like(share)
    least = jnp.where(near, 0, jnp.maximum(1 - 1 / jnp.maximum(excess, 1), 0))
    return Quadratic(X, seen.valid, A, e, Q, size, parts.mean, share, least)


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
