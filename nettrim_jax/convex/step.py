r"""One step of ADMM on the graph form of a program, and the states to start from.

.. math::
    \min_{W, b, Z} \; g(W) + f(Z) \quad\text{s.t.}\quad Z = X W + b + t

Matrices are transposed, with one unit per row. The sources are Boyd et al. (2011),
secs. 3.4 and 5, and, for the graph form, Parikh and Boyd (2014), "Block splitting for
distributed optimization".

Knows programs and the projection; knows no loop and no model.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax._numerics import matmul
from nettrim_jax.convex import programs, projection
from nettrim_jax.convex.programs import Program
from nettrim_jax.convex.projection import Factor
from nettrim_jax.convex.solution import Solution
from nettrim_jax.typing import Array


class State(NamedTuple):
    """A point and its projection on the graph, which a step maps to the next state.

    The point less its projection is the scaled dual. Responses are less ``t``.
    """

    W_hat: Array  # [d_out, d_in]
    R_hat: Array  # [d_out, n]
    W: Array  # [d_out, d_in]
    b: Array  # [d_out], for the centred columns of the graph
    R: Array  # [d_out, n], W X^T + b
    rho: Array  # []


class Halves(NamedTuple):
    """The results of the two proxes within a step, before the projection."""

    W: Array  # [d_out, d_in], exact zeros
    R: Array  # [d_out, n], less t; meets the response's requirement
    dual: Array  # [d_out, n], a subgradient of f there


def cold(program: Program, factor: Factor, scale: Array) -> State:
    """The cold start: zero weights, and a step size of a typical order."""
    (n, d_in), d_out = program.X.shape, program.response.Y.shape[0]
    dtype = program.X.dtype
    W, R = jnp.zeros((d_out, d_in), dtype), jnp.zeros((d_out, n), dtype)
    # the size of a dual over that of a response; columns of zeros do not count
    live = jnp.any(factor.X != 0, axis=0)
    sizes = program.penalty.slope(W) / jnp.sqrt(factor.scale2)[None, :]
    count = jnp.maximum(jnp.sum(live), 1) * d_out
    typical = jnp.sum(jnp.where(live[None, :], sizes, 0)) / count.astype(dtype)
    rho = typical * math.sqrt(d_in * d_out) / scale
    return State(W, R, W, jnp.zeros((d_out,), dtype), R, rho)


def step(
    program: Program, factor: Factor, state: State, relaxation: float
) -> tuple[State, Halves]:
    r"""One step, with :math:`R = Z - t`.

    .. math::
        W^{1/2} &= \mathrm{prox}_{g/\rho}(2 W - \hat W), \quad
        R^{1/2} = \mathrm{prox}_{f/\rho}(2 R - \hat R + t) - t \\
        \hat W &\leftarrow \hat W + \alpha (W^{1/2} - W), \quad
        \hat R \leftarrow \hat R + \alpha (R^{1/2} - R) \\
        (W, b, R) &\leftarrow \Pi_{\text{graph}}(\hat W, \hat R)

    The projection is in the distance of the factor. This is ADMM with the scaled duals
    :math:`\hat W - W` and :math:`\hat R - R`, written as the Douglas-Rachford
    iteration of one point (Eckstein and Bertsekas, 1992).
    """
    W_hat, R_hat, W, _, R, rho = state
    W_half = program.penalty.prox(2 * W - W_hat, 1 / (rho * factor.scale2[None, :]))
    asked = 2 * R - R_hat
    R_half = program.response.prox(asked + program.t, factor.rows) - program.t
    W_hat = W_hat + relaxation * (W_half - W)
    R_hat = R_hat + relaxation * (R_half - R)
    W, b, R = projection.project(factor, W_hat, R_hat, program.bias == "free")
    dual = rho * factor.sigma2 * factor.weigh(asked - R_half)
    return State(W_hat, R_hat, W, b, R, rho), Halves(W_half, R_half, dual)


def warm(program: Program, factor: Factor, start: State, init: Solution) -> State:
    """The state at the solution of a similar program; ``start`` if it is unusable.

    At a fixed point the scaled dual of the weights follows from that of the response.
    """
    assert init.dual is not None
    rho, L = init.stats.rho, init.dual.T
    W = programs.stacked(program, init.W, init.bias)
    b = matmul(W, factor.mean) + (init.bias if program.bias == "free" else 0)
    R = matmul(W, factor.XT) + b[:, None]
    W_hat = W + matmul(L, factor.X) / (rho * factor.scale2[None, :])
    each = L if factor.rows is None else L / factor.rows[None, :]
    R_hat = R - each / (rho * factor.sigma2)
    W, b, R = projection.project(factor, W_hat, R_hat, program.bias == "free")
    state = State(W_hat, R_hat, W, b, R, rho)
    fit = functools.reduce(jnp.logical_and, [jnp.isfinite(a).all() for a in state])
    return jax.tree.map(lambda a, b: jnp.where(fit & (rho > 0), a, b), state, start)
