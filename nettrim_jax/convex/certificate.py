r"""The proof of a solution's quality: what a point costs, beside a lower bound.

.. math::
    D(\Lambda) \le \min_W \; g(W) + f(W X^T + t)

Knows programs and arrays; knows no loop and no model.
"""

import jax
import jax.numpy as jnp

from nettrim_jax._numerics import matmul
from nettrim_jax.convex import programs
from nettrim_jax.convex.programs import Program
from nettrim_jax.convex.solution import Certificate
from nettrim_jax.convex.step import Halves
from nettrim_jax.typing import Array

SWEEPS = 8  # of what moves a dual back; each leaves a half to a tenth of the excess


def certify(
    program: Program,
    scale: Array,
    halves: Halves,
    b: Array,
    best: Array,
    *,
    repair: bool = False,
) -> tuple[Certificate, Array]:
    """The certificate and objective of ``(halves.W, b)``.

    Args:
      program: the program.
      scale: that of its response.
      halves: the results of the proxes, with a dual.
      b: the bias.
      best: a lower bound.
      repair: whether rounding may have spoiled the dual, see :func:`repaired_bound`.

    Returns:
      The certificate, with the better of both bounds, and the objective.
    """
    value = programs.objective(program, halves.W)
    bounded = repaired_bound if repair else programs.dual_bound
    bound, multiplier = bounded(program, halves.dual)
    bound = jnp.maximum(best, bound)
    distance = programs.distance(program, halves.W, b)
    norm, info = jnp.sqrt(jnp.sum(multiplier**2)), jnp.finfo(value.dtype)
    # weights that miss the set by more than rounding may be cheaper by this much
    price = norm * jnp.where(distance > 8 * info.eps * scale, distance, 0)
    off = jnp.maximum(jnp.abs(value - bound), price)
    # both are zero to within the rounding of the sums whose difference is the bound
    size = norm * (scale + program.response.epsilon)
    nothing = jnp.maximum(jnp.abs(value), jnp.abs(bound)) <= 8 * info.eps * size
    off = jnp.where(nothing, 0, off)
    return Certificate(
        gap=off / jnp.maximum(jnp.abs(value), info.tiny),
        lower_bound=bound,
        violation=distance / scale,
    ), value


def repaired_bound(program: Program, L: Array) -> tuple[Array, Array]:
    r"""A lower bound from a dual that rounding moved off, and its multiplier.

    Rounding moves :math:`\Lambda X` by the size of an input, and where that is large,
    by much of its penalty weight; to shrink a whole unit for it costs as much of the
    bound. So the excess over what the penalty allows is taken back along the input
    itself,

    .. math::
        \Lambda_{jk} \leftarrow \Lambda_{jk} - \sum_i
        \frac{(\Lambda X)_{ji} - \Pi(\Lambda X)_{ji}}{\sum_{k \in \Omega_j} X_{ki}^2}
        X_{ki}, \qquad k \in \Omega_j

    some times over, and what is left shrinks the unit. The bound is never below that
    of :func:`nettrim_jax.convex.programs.dual_bound`.
    """
    response, penalty = program.response, program.penalty
    free = program.bias == "free"
    L = response.dual(L, free)
    on = response.on.astype(L.dtype)
    count = jnp.maximum(jnp.sum(on, axis=1, keepdims=True), 1)
    norm2 = matmul(on, program.X**2)
    if free:
        norm2 = norm2 - matmul(on, program.X) ** 2 / count
    enough = norm2 > 1e-3 * jnp.sum(program.X**2, axis=0)[None, :]

    def sweep(_: int, L: Array) -> Array:
        over = penalty.prox(-matmul(L, program.X), jnp.ones((1, 1), L.dtype))
        share = jnp.where(enough, over / jnp.where(enough, norm2, 1), 0)
        more = on * matmul(share, program.X.T)
        if free:
            more = on * (more - jnp.sum(more, axis=1, keepdims=True) / count)
        return L + more

    # inputs that are much alike may move a dual too far; as a stack, compiled once
    both = jnp.stack([L, jax.lax.fori_loop(0, SWEEPS, sweep, L)])
    bounds, multipliers = jax.vmap(lambda L: programs.dual_bound(program, L))(both)
    better = bounds[1] > bounds[0]
    return jnp.max(bounds), jnp.where(better, multipliers[1], multipliers[0])
