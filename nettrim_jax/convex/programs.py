r"""The convex program of one layer: its data, objective and dual bound.

.. math::
    \min_{W, b} \; g(W) + f(Z) \quad\text{s.t.}\quad Z = X W + b + t

A program is made from arrays with one unit per column. It holds their transposes, one
unit per row, which all functions below take (``projection`` says why):
:math:`Z^T = W^T X^T + b^T + t^T`.

Knows penalties and responses; knows no solver and no model.
"""

import dataclasses

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from nettrim_jax._numerics import matmul, norm
from nettrim_jax.convex.entrywise import L1
from nettrim_jax.convex.penalties import Entrywise, Penalty
from nettrim_jax.convex.responses import Response
from nettrim_jax.typing import Array

BIASES = ("fixed", "free", "penalized")
# share of the root mean square weight; between 0.05 and 0.3 it hardly matters
FLOOR = 0.1


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Program:
    """One layer's program, or a stack of them with a leading lane axis.

    Attributes:
      X: inputs, ``[n, d_in]``; a penalised bias is a last column of ones.
      t: offset, which is added to ``W X^T``; ``[d_out, n]`` or ``[1, 1]``.
      penalty: the ``g``, of ``W`` ``[d_out, d_in]``.
      response: the ``f``.
      bias: ``"fixed"``, ``"free"`` or ``"penalized"``, see :func:`relu_program`.
    """

    X: Array
    t: Array
    penalty: Penalty
    response: Response
    bias: str = dataclasses.field(default="fixed", metadata={"static": True})


def response_of(program: Program, W: Array, b: Array) -> Array:
    """``Z = W X^T + b + t``, ``[d_out, n]``; ``b`` is zero unless the bias is free."""
    return matmul(W, program.X.T) + b[:, None] + program.t


def objective(program: Program, W: Array) -> Array:
    """The penalty of ``W``, a scalar."""
    return program.penalty.value(W)


def distance(program: Program, W: Array, b: Array) -> Array:
    """Distance of ``Z`` to the requirement on it (Frobenius), a scalar."""
    return program.response.distance(response_of(program, W, b))


def excludes(program: Program, L: Array) -> Array:
    r"""Whether ``L``, ``[d_out, n]``, is a ray: a proof that no weights are feasible.

    .. math::
        \langle \Lambda, t \rangle - f^*(\Lambda) - \sup_{W \in \text{dom} g}
        \langle -\Lambda X, W \rangle > 0

    The last term is finite only if :math:`\Lambda X` is zero, to within rounding in
    float32 and to 1e-10 in float64, wherever a weight may grow without limit.
    """
    L, A = _useful(program, L)
    size = norm(L)
    box = program.penalty.box()
    limit = jnp.where(A > 0, box.upper, -jnp.asarray(box.lower)).astype(A.dtype)
    endless = limit == jnp.inf
    eps = float(jnp.finfo(A.dtype).eps)
    nothing = max(16 * eps, 1e-10) * size * norm(program.X, axis=0)[None, :]
    ray = jnp.all(~endless | (jnp.abs(A) <= nothing))
    value = program.response.bound(L, program.t)
    value = value - jnp.sum(jnp.where(endless, 0, jnp.abs(A) * limit))
    asked = program.response.scale() + program.response.epsilon
    asked = asked + norm(program.t + jnp.zeros_like(L))
    return ray & (value > 64 * eps * size * asked)


def finite(program: Program) -> Array:
    """Whether the data is finite, and the values of the penalty are allowed."""
    numbers = jnp.all(jnp.isfinite(program.X)) & jnp.all(jnp.isfinite(program.t))
    for fits in program.penalty.fits().values():
        numbers &= fits
    return numbers & program.response.finite()


def dual_bound(program: Program, L: Array) -> tuple[Array, Array]:
    r"""A lower bound on the optimum from any ``L``, ``[d_out, n]``, and its multiplier.

    .. math::
        D(\Lambda) = \langle \Lambda, t \rangle - f^*(\Lambda) - g^*(-\Lambda X)
        \le \min_W g(W) + f(W X^T + t)

    ``L`` is first moved to where both conjugates are finite: the response clips it, and
    the penalty shrinks its rows. So the bound holds for every ``L`` (Aghasi et al.,
    2017, and the dual of the norm).
    """
    L, A = _useful(program, L)
    penalty = program.penalty

    def bound(penalty: Penalty) -> tuple[Array, Array]:
        shrink, conjugate = penalty.conjugate(A)
        shrunk = L * shrink[:, None]
        return program.response.bound(shrunk, program.t) - conjugate, shrunk

    best, multiplier = bound(penalty)
    if isinstance(penalty, L1) or not isinstance(penalty, Entrywise):
        return best, multiplier
    # a distant limit or a small ridge makes g* large; without them L shrinks more, and
    # g* is zero
    other, shrunk = bound(L1(penalty.box().weight))
    better = ~(best >= other)
    return jnp.where(better, other, best), jnp.where(better, shrunk, multiplier)


def _useful(program: Program, L: Array) -> tuple[Array, Array]:
    """The nearest dual at which ``f*`` is finite, and the argument of ``g*``."""
    L = program.response.dual(L, program.bias == "free")
    return L, -matmul(L, program.X)


def stacked(program: Program, W: Array, b: Array) -> Array:
    """A solution's weights as programs hold them: transposed, with a penalised bias."""
    rows = [W, b[None, :]] if program.bias == "penalized" else [W]
    return jnp.concatenate(rows).T


def reweighted(program: Program, W: Array, b: Array) -> Program:
    """The first program of a reweighted series, with the weights after a solution.

    ``W`` is ``[d_in, d_out]`` and ``b`` ``[d_out]``, as in a solution.
    """
    penalty = program.penalty.reweighted(stacked(program, W, b), FLOOR)
    return dataclasses.replace(program, penalty=penalty)
