r"""The convex program of one layer: its data, objective and dual bound.

.. math::
    \min_{W, b} \; g(W) + f(Z) \quad\text{s.t.}\quad Z = X W + b + t

A program is made from arrays with one unit per column. It holds their transposes, one
unit per row, which all functions below take (``projection`` says why):
:math:`Z^T = W^T X^T + b^T + t^T`.

Knows penalties and responses; knows no solver and no model.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax._clip import NO_CLIP, RELU, Clip
from nettrim_jax._numerics import matmul, norm
from nettrim_jax._sharding import untyped
from nettrim_jax._trees import known
from nettrim_jax._values import flag, numbers, real
from nettrim_jax.convex.entrywise import L1
from nettrim_jax.convex.penalties import Entrywise, Penalty, is_penalty
from nettrim_jax.convex.responses import Match, Response
from nettrim_jax.results import ProgramError
from nettrim_jax.typing import Array, ArrayLike, DTypeLike

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


@untyped
def relu_program(
    X: ArrayLike,
    Y: ArrayLike,
    epsilon: ArrayLike,
    t: ArrayLike = 0.0,
    V: ArrayLike = 0.0,
    penalty: Penalty | None = None,
    *,
    bias: str = "fixed",
) -> Program:
    r"""Net-Trim's program of a layer that a ReLU follows.

    .. math::
        \min_W \|W\|_1 \quad\text{s.t.}\quad
        \|(X W + t - Y)_\Omega\|_F \le \epsilon, \quad
        (X W + t)_{ij} \le V_{ij} \;\text{off}\; \Omega, \qquad
        \Omega = \{Y > 0\}

    The parallel program has ``V = 0``; the cascade program has
    ``V = max(0, X W0 + t)`` (Aghasi et al., 2017, eqs. 4 and 6).

    Args:
      X: inputs, ``[n, d_in]``, floating.
      Y: trained response after the ReLU, ``[n, d_out]``.
      epsilon: absolute budget (Frobenius norm), in units of ``Y``.
      t: offset, which is added to ``X W``; broadcasts to ``[n, d_out]``.
      V: limit where the unit is off; broadcasts to ``[n, d_out]``.
      penalty: the ``g``; ``L1()`` by default.
      bias: ``"fixed"``: it is part of ``t``. ``"free"``: one number per unit, added
        to ``t``, moves without penalty. ``"penalized"``: it moves under the
        penalty, as in the code of Net-Trim's authors (an array of penalty weights
        then has one more row for it).

    Returns:
      The program, for :func:`nettrim_jax.solve`.

    Raises:
      ProgramError: shapes, dtypes or values do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> X = jax.random.normal(jax.random.key(0), (50, 10))
      >>> Y = jax.nn.relu(X[:, :1] - 2 * X[:, 1:2])
      >>> solution = nt.solve(nt.relu_program(X, Y, epsilon=0.1))
      >>> int(jnp.sum(solution.W != 0))
      2
    """
    return _program(RELU, X, Y, epsilon, t=t, V=V, penalty=penalty, bias=bias)


def clip_program(
    X: ArrayLike,
    Y: ArrayLike,
    epsilon: ArrayLike,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    t: ArrayLike = 0.0,
    penalty: Penalty | None = None,
    bias: str = "fixed",
) -> Program:
    r"""Net-Trim's program of a layer whose response is clipped, as by ReLU6.

    .. math::
        \min_W \|W\|_1 \quad\text{s.t.}\quad
        \|(X W + t - Y)_\Omega\|_F \le \epsilon, \quad
        (X W + t)_{ij} \le l \;\text{if}\; Y_{ij} \le l, \quad
        (X W + t)_{ij} \ge u \;\text{if}\; Y_{ij} \ge u, \qquad
        \Omega = \{l < Y < u\}

    It is :func:`relu_program` with ``V = 0`` for the limits 0 and infinity, and
    :func:`linear_program` without limits. (The program of Aghasi et al., 2017, eq. 4,
    with a second limit.)

    Args:
      X: inputs, ``[n, d_in]``, floating.
      Y: trained response after the clip, ``[n, d_out]``.
      epsilon: absolute budget (Frobenius norm), in units of ``Y``.
      low: the lower limit :math:`l`, a number; minus infinity if there is none.
      high: the upper limit :math:`u`, above ``low``; infinity if there is none.
      t: offset, which is added to ``X W``; broadcasts to ``[n, d_out]``.
      penalty: the ``g``; ``L1()`` by default.
      bias: as in :func:`relu_program`.

    Returns:
      The program, for :func:`nettrim_jax.solve`.

    Raises:
      ProgramError: shapes, dtypes or values do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> X = jax.random.normal(jax.random.key(0), (50, 10))
      >>> Y = jax.nn.relu6(4 * X[:, :1] - 8 * X[:, 1:2])
      >>> solution = nt.solve(nt.clip_program(X, Y, epsilon=0.1, low=0.0, high=6.0))
      >>> int(jnp.sum(solution.W != 0))
      2
    """
    try:
        clip = Clip(float(low), float(high))
    except (TypeError, ValueError):
        clip = Clip(math.nan)
    if not clip.low < clip.high:
        raise ProgramError(
            f"program: low={low!r}, high={high!r}; expected two numbers, the first "
            "below the second"
        )
    return _program(clip, X, Y, epsilon, t=t, V=0.0, penalty=penalty, bias=bias)


@untyped
def linear_program(
    X: ArrayLike,
    Y: ArrayLike,
    epsilon: ArrayLike,
    t: ArrayLike = 0.0,
    penalty: Penalty | None = None,
    bias: str = "fixed",
) -> Program:
    r"""Net-Trim's program of a layer that no ReLU follows.

    .. math::
        \min_W \|W\|_1 \quad\text{s.t.}\quad \|X W + t - Y\|_F \le \epsilon

    Args:
      X: inputs, ``[n, d_in]``, floating.
      Y: trained response, ``[n, d_out]``.
      epsilon: absolute budget (Frobenius norm), in units of ``Y``.
      t: offset, which is added to ``X W``; broadcasts to ``[n, d_out]``.
      penalty: the ``g``; ``L1()`` by default.
      bias: as in :func:`relu_program`.

    Returns:
      The program, for :func:`nettrim_jax.solve`.

    Raises:
      ProgramError: shapes, dtypes or values do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> program = nt.linear_program(jnp.eye(2), jnp.array([[3.0], [0.1]]), 0.5)
      >>> solution = nt.solve(program, nt.ADMM(tol=1e-5))
      >>> [round(float(w), 2) for w in solution.W[:, 0]]
      [2.51, 0.0]
    """
    return _program(NO_CLIP, X, Y, epsilon, t=t, V=0.0, penalty=penalty, bias=bias)


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


def _program(
    clip: Clip,
    X: ArrayLike,
    Y: ArrayLike,
    epsilon: ArrayLike,
    *,
    t: ArrayLike,
    V: ArrayLike,
    penalty: Penalty | None,
    bias: str,
) -> Program:
    X, Y = _numbers("X", X), _numbers("Y", Y)
    if X.ndim != 2 or Y.ndim != 2 or X.shape[0] != Y.shape[0] or 0 in X.shape + Y.shape:
        raise ProgramError(
            "program: expected X [n, d_in] and Y [n, d_out] with the same n rows, "
            f"got X {list(X.shape)} and Y {list(Y.shape)}; rows are samples, one "
            "program holds one layer, and jax.vmap stacks programs"
        )
    if not jnp.issubdtype(X.dtype, jnp.floating) or X.dtype.itemsize < 4:
        raise ProgramError(
            f"program: expected X of dtype float32 or float64, got {X.dtype}; "
            "cast it with X.astype(jnp.float32)"
        )
    if jnp.issubdtype(Y.dtype, jnp.complexfloating):
        raise ProgramError(f"program: expected a real Y, got {Y.dtype}")
    if bias not in BIASES:
        raise ProgramError(f"program: bias={bias!r}; expected one of {BIASES}")
    dtype, shape, d_in, d_out = X.dtype, Y.shape, X.shape[1], Y.shape[1]
    if flag(epsilon):
        raise ProgramError(f"program: expected a number as epsilon, got {epsilon!r}")
    Y, epsilon = Y.astype(dtype), _numbers("epsilon", epsilon, dtype)
    if epsilon.shape != ():
        raise ProgramError(
            f"program: expected a scalar epsilon, got shape {list(epsilon.shape)}; "
            "solve one program for each epsilon with jax.vmap"
        )
    t, V = _broadcast("t", t, dtype, shape), _broadcast("V", V, dtype, shape)
    given: Any = L1() if penalty is None else penalty
    if not is_penalty(given):
        raise ProgramError(
            f"program: expected a penalty such as L1(), got {type(given).__name__}"
        )
    check_weights(given)
    check_shapes(given, (d_in + (bias == "penalized"), d_out))
    chosen = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), given.T)
    if known(V) and not (np.asarray(V) > -np.inf).all():
        raise ProgramError("program: V holds NaN or minus infinity; no Z is below that")
    for name, array in {"X": X, "Y": Y, "t": t, "epsilon": epsilon}.items():
        if known(array) and not np.isfinite(array).all():
            raise ProgramError(f"program: {name} holds NaN or infinity; remove it")
    if known(epsilon) and epsilon < 0:
        raise ProgramError(
            f"program: epsilon={float(epsilon):g}; expected a number of at least 0"
        )
    if bias == "penalized":
        X = jnp.concatenate([X, jnp.ones((X.shape[0], 1), dtype)], axis=1)
    Y, lower = clip(Y), None
    if clip not in (RELU, NO_CLIP):
        lower, V = clip.sides(Y, Y)
    lower = None if lower is None else lower.T
    response = Match(Y.T, clip.passes(Y).T, V.T, epsilon, lower)
    return Program(X, t.T, chosen, response, bias)


def check_weights(penalty: Penalty) -> None:
    """Raises ProgramError if the penalty's values are known and not allowed."""
    for value in jax.tree.leaves(penalty, is_leaf=lambda part: part is not penalty):
        # a list is a tree of its own, and what it has would be taken for weights
        if not is_penalty(value) and not real(value, flags=True):
            raise ProgramError(
                f"program: expected numbers in {type(penalty).__name__}, got {value!r}"
            )
    with jax.ensure_compile_time_eval():  # known values stay known within jit
        for text, fits in penalty.fits().items():
            if known(fits) and not fits:
                raise ProgramError(f"program: expected {text}")


def check_shapes(penalty: Penalty, shape: tuple[int, ...]) -> None:
    """Raises ProgramError if the penalty does not fit ``W``."""
    expected = penalty.misfit(shape)
    if expected:
        raise ProgramError(f"program: expected {expected}")


def _numbers(name: str, value: ArrayLike, dtype: DTypeLike | None = None) -> Array:
    array = numbers(value, dtype)
    if array is None:
        raise ProgramError(
            f"program: expected numbers as {name}, got {type(value).__name__}"
        )
    return array


def _broadcast(name: str, array: ArrayLike, dtype: DTypeLike, shape: tuple) -> Array:
    array = _numbers(name, array, dtype)
    if array.size == 1:
        return array.reshape(1, 1)
    array = array.reshape((1,) * (2 - array.ndim) + array.shape)
    try:
        return jnp.broadcast_to(array, shape)
    except ValueError:
        raise ProgramError(
            f"program: expected {name} that broadcasts to Y {list(shape)}, "
            f"got {list(array.shape)}"
        ) from None
