"""The graph ``{(W, b, Z): Z = X W + b + t}``: one factor, and the projection on it.

The projection is exact and costs three matrix products: two with ``X`` and one
with the stored inverse, which has the smaller of X's two sides. An explicit
inverse rather than a Cholesky factor, because triangular solves are slow on
accelerators and what is inverted here, the identity plus a Gram matrix of unit
columns, is well conditioned.

Knows arrays only: no program, no penalty, no model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax.typing import Array

HIGHEST = jax.lax.Precision.HIGHEST


def matmul(a: Array, b: Array) -> Array:
    """``a @ b`` at full precision: bf16 products, TPU's default, make ADMM stall."""
    return jnp.matmul(a, b, precision=HIGHEST)


class Graph(NamedTuple):
    """Everything that the projection on the graph needs, made once per program."""

    X: Array  # [n, d_in], centred if the bias is free
    mean: Array  # [d_in], what the centring took away; zeros if the bias is fixed
    metric: Array  # [d_in], squared column norms: the weight of each row of W
    sigma2: Array  # [], weight of the response block beside the weight block
    inverse: Array  # [k, k], k = min(n, d_in)


def graph(X: Array, free_bias: bool) -> Graph:
    """Factorises the graph of ``W -> X W + b`` in the metric that balances it.

    Distances are measured by ``sum_i metric_i |W_i|^2 + sigma2 |Z|^2``: rows of
    ``W`` weighted by the squared column norms of ``X`` (so that the scale of an
    input does not matter), the response by one over the mean eigenvalue of the
    Gram matrix of the scaled columns.

    A free bias is eliminated: it carries no penalty and no copy, so minimising
    over it centres the columns of ``X``.

    Args:
      X: inputs, ``[n, d_in]``.
      free_bias: whether ``b`` may move; otherwise it is zero.

    Returns:
      The factorised graph.
    """
    n, d_in = X.shape
    if free_bias:
        mean = jnp.mean(X, axis=0)
        centred = X - mean[None, :]
    else:
        mean, centred = jnp.zeros((d_in,), X.dtype), X
    norm2 = jnp.sum(centred**2, axis=0)
    # a constant column, centred, is rounding noise: the bias does its work
    noise = n * (4 * jnp.finfo(X.dtype).eps * jnp.max(jnp.abs(X), axis=0)) ** 2
    live = ~(norm2 <= noise)  # what is not finite is no noise
    centred = jnp.where(live[None, :], centred, 0)
    metric = jnp.where(live, norm2, 1)
    sigma2 = min(n, d_in) / jnp.maximum(jnp.sum(live), 1).astype(X.dtype)

    scaled = centred / jnp.sqrt(metric)[None, :]
    gram = matmul(scaled.T, scaled) if d_in <= n else matmul(scaled, scaled.T)
    eye = jnp.eye(gram.shape[0], dtype=X.dtype)
    factor = jax.scipy.linalg.cho_factor(eye + sigma2 * gram, lower=True)
    inverse = jax.scipy.linalg.cho_solve(factor, eye)
    inverse = (inverse + inverse.T) / 2
    if d_in <= n:
        root = jnp.sqrt(metric)
        inverse = inverse / (root[:, None] * root[None, :])
    return Graph(centred, mean, metric, sigma2, inverse)


def project(
    graph: Graph, W: Array, Z: Array, t: Array, free_bias: bool
) -> tuple[Array, Array, Array]:
    r"""The point of the graph that is nearest to ``(W, Z)`` in its metric.

    .. math::
        \min_{W', b, Z'} \; \|W' - W\|_C^2 + \sigma^2 \|Z' - Z\|_F^2
        \quad\text{s.t.}\quad Z' = X W' + b + t

    Args:
      graph: the factorised graph.
      W: ``[d_in, d_out]``.
      Z: ``[n, d_out]``.
      t: ``[n, d_out]`` or ``[1, d_out]`` or ``[1, 1]``.
      free_bias: as given to :func:`graph`.

    Returns:
      ``(W', b, Z')`` where ``b`` (``[d_out]``) belongs to the centred columns:
      ``Z' = graph.X @ W' + b + t``.
    """
    R = Z - t
    b = jnp.mean(R, axis=0) if free_bias else jnp.zeros(R.shape[1:], R.dtype)
    R = R - b[None, :]
    metric = graph.metric[:, None]
    n, d_in = graph.X.shape
    if d_in <= n:
        # (C + s X'X) W' = C W + s X'R
        W = matmul(graph.inverse, metric * W + graph.sigma2 * matmul(graph.X.T, R))
        return W, b, matmul(graph.X, W) + b[None, :] + t
    # Woodbury: S = (I + s X C^-1 X')^-1 (R - X W)
    S = matmul(graph.inverse, R - matmul(graph.X, W))
    return W + graph.sigma2 / metric * matmul(graph.X.T, S), b, Z - S
