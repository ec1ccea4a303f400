"""The projection on the graph ``{(W, b, R): R = W X^T + b}``, and its factor.

``W`` ``[d_out, d_in]`` and ``R`` ``[d_out, n]`` have one unit per row, since products
of small layers then run two to three times faster on CPU. The projection is exact and
costs three matrix products: two with ``X`` and one with a stored inverse, which has the
smaller of the two sides of ``X``. It is an explicit inverse, since triangular solves
are slow on accelerators and the inverted matrix, the identity plus a Gram matrix of
unit columns, is well conditioned.

Knows arrays; knows no program, no penalty and no model.
"""

from typing import NamedTuple

import jax.numpy as jnp

from nettrim_jax._numerics import inverse, matmul
from nettrim_jax.typing import Array


class Factor(NamedTuple):
    """The data of the projection on the graph, made once per program."""

    X: Array  # [n, d_in], centred if the bias is free
    mean: Array  # [d_in], the subtracted means; zeros unless the bias is free
    scale2: Array  # [d_in], squared column norms: the weight of each column of W
    sigma2: Array  # [], weight of the response block beside the weight block
    inverse: Array  # [k, k], k = min(n, d_in)
    XT: Array  # [d_in, n], stored: small products with it are 1.5 times faster
    rows: Array | None = None  # [n], weights of the samples; None if they are ones

    def weigh(self, R: Array) -> Array:
        """A response, ``[d_out, n]``, whose samples are multiplied by their weights."""
        return R if self.rows is None else self.rows[None, :] * R


def factorise(X: Array, free_bias: bool, rows: Array | None = None) -> Factor:
    """Factorises the graph of ``W -> W X^T + b`` in a distance that balances it.

    The squared distance is ``sum_i scale2_i |W_:i|^2 + sigma2 sum_k rows_k |R_:k|^2``.
    It weighs columns of ``W`` by the squared column norms of ``X``, in which samples
    weigh alike, so that the scale of an input does not matter, and the response by one
    over the mean eigenvalue of the Gram matrix of the scaled columns.

    A free bias is eliminated: it has no penalty and no copy, so minimising over it
    centres the columns of ``X``.

    Args:
      X: inputs, ``[n, d_in]``.
      free_bias: whether ``b`` may move; otherwise it is zero.
      rows: positive weights of the samples, ``[n]``; None stands for ones.

    Returns:
      The factor.
    """
    n, d_in = X.shape
    if free_bias:
        # a mean that ends in a product may be rounded in one kernel and not in another,
        # and then the second time would undo what the first one did
        parts = n if rows is None else (jnp.sum(rows) / rows)[:, None]
        mean = jnp.sum(X / parts, axis=0)
        centred = X - mean[None, :]
        # centred twice: the rounding of the first mean may exceed the rest
        rest = jnp.sum(centred / parts, axis=0)
        mean, centred = mean + rest, centred - rest[None, :]
    else:
        mean, centred = jnp.zeros((d_in,), X.dtype), X
    norm2 = jnp.sum(centred**2, axis=0)
    # a constant column is rounding noise once centred: the bias does its work
    noise = n * (4 * jnp.finfo(X.dtype).eps * jnp.max(jnp.abs(X), axis=0)) ** 2
    live = ~(norm2 <= noise)  # NaN is not noise
    centred = jnp.where(live[None, :], centred, 0)
    side = None if rows is None else jnp.sqrt(rows)[:, None]
    if side is not None:
        norm2 = jnp.sum((side * centred) ** 2, axis=0)
    scale2 = jnp.where(live, norm2, 1)
    sigma2 = min(n, d_in) / jnp.maximum(jnp.sum(live), 1).astype(X.dtype)

    scaled = centred / jnp.sqrt(scale2)[None, :]
    if side is not None:
        scaled = side * scaled
    gram = matmul(scaled.T, scaled) if d_in <= n else matmul(scaled, scaled.T)
    eye = jnp.eye(gram.shape[0], dtype=X.dtype)
    K = inverse(eye + sigma2 * gram)
    if d_in <= n:
        root = jnp.sqrt(scale2)
        K = K / (root[:, None] * root[None, :])
    elif side is not None:
        K = side * K / side.T
    return Factor(centred, mean, scale2, sigma2, K, centred.T, rows)


def project(
    factor: Factor, W: Array, R: Array, free_bias: bool
) -> tuple[Array, Array, Array]:
    r"""The point of the graph that is nearest to ``(W, R)`` in its distance.

    .. math::
        \min_{W', b, R'} \; \|W' - W\|_C^2 + \sigma^2 \|R' - R\|_D^2
        \quad\text{s.t.}\quad R' = W' X^T + b

    Args:
      factor: from :func:`factorise`.
      W: ``[d_out, d_in]``.
      R: ``[d_out, n]``, the response less its offset.
      free_bias: as given to :func:`factorise`.

    Returns:
      ``(W', b, R')``, where ``b``, ``[d_out]``, belongs to the centred columns:
      ``R' = W' @ factor.X.T + b``.
    """
    n, d_in = factor.X.shape
    scale2 = factor.scale2[None, :]
    b = jnp.zeros(R.shape[:1], R.dtype)
    if free_bias:
        rows, parts = factor.rows, jnp.full((n,), 1 / n, R.dtype)
        b = matmul(R, parts if rows is None else rows / jnp.sum(rows))
    if d_in <= n:
        # W' (C + s X'DX) = W C + s R D X; b is orthogonal to centred columns
        pull = factor.sigma2 * matmul(factor.weigh(R), factor.X)
        W = matmul(scale2 * W + pull, factor.inverse)
        R = matmul(W, factor.XT)
        return W, b, R + b[:, None] if free_bias else R
    # Woodbury: S = (R - b - W X') (I + s D X C^-1 X')^-1
    off = R - matmul(W, factor.XT)
    S = matmul(off - b[:, None] if free_bias else off, factor.inverse)
    return W + factor.sigma2 / scale2 * matmul(factor.weigh(S), factor.X), b, R - S
