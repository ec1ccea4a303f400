"""Makes the program of one layer from arrays, and checks them.

Knows programs; knows no solver and no model.
"""

import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from nettrim_jax._clip import NO_CLIP, RELU, Clip
from nettrim_jax._sharding import untyped
from nettrim_jax._trees import known
from nettrim_jax._values import flag, numbers, real
from nettrim_jax.convex.entrywise import L1
from nettrim_jax.convex.penalties import Penalty, is_penalty
from nettrim_jax.convex.programs import BIASES, Program
from nettrim_jax.convex.responses import Match
from nettrim_jax.results import ProgramError
from nettrim_jax.typing import Array, ArrayLike, DTypeLike


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


@untyped
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
      >>> [round(float(w)) for w in solution.W[:3, 0]]
      [4, -8, 0]
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
