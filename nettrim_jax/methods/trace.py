"""Every level of one layer at once, by the order in which its weights go.

Knows programs and the elimination of weights; knows no network.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nettrim_jax._compile import compiled
from nettrim_jax._numerics import inverse, matmul
from nettrim_jax._sharding import untyped
from nettrim_jax._trees import known
from nettrim_jax._values import numbers
from nettrim_jax.convex.programs import Program
from nettrim_jax.methods.damping import damped, is_damping
from nettrim_jax.methods.layerobs import order_of, within_reach
from nettrim_jax.methods.patterns import Blocks, Inputs, Neurons, Pattern, Sparsity
from nettrim_jax.methods.support import fitted
from nettrim_jax.results import MethodError, ProgramError
from nettrim_jax.typing import Array, ArrayLike

TRACED = Sparsity | Blocks | Inputs | Neurons


class Trace(NamedTuple):
    """One layer at every level, from all of its weights to none.

    Attributes:
      left: the number of weights that are left, ``[k + 1]`` int32, falling.
      losses: half the squared error then, with the damping's part, ``[k + 1]``.
      place: the step at which each weight goes, ``[d_in, d_out]`` int32, from 1.
      W: the weights before, ``[d_in, d_out]``.
      H: the damped second moments of the inputs, ``[d_in, d_in]``.
    """

    left: Array
    losses: Array
    place: Array
    W: Array
    H: Array

    @property
    def sparsity(self) -> Array:
        """Share of the weights that are zero, ``[k + 1]``."""
        left = self.left.astype(jnp.float32)
        return 1 - left / (self.place.shape[-2] * self.place.shape[-1])

    def at(self, left: ArrayLike) -> Array:
        """The weights at the first level with at most so many left, ``[d_in, d_out]``.

        Args:
          left: the number of weights; may be traced.
        """
        return _at(self, jnp.asarray(left, jnp.int32))


@untyped
def trace(
    program: Program,
    W: ArrayLike | None = None,
    *,
    pattern: Pattern | None = None,
    damping: ArrayLike = 0.01,
) -> Trace:
    r"""Removes the weights of one layer one after another, each at least loss.

    .. math::
        \ell_k = \min_W \; \tfrac12 \|X (W - W_0)\|_F^2
        + \tfrac\lambda2 \|W - W_0\|_F^2
        \quad\text{s.t.}\quad W_{ij} = 0 \;\text{for the first}\; k \;\text{that go}

    One run of :class:`nettrim_jax.LayerOBS` passes through all levels: each of them has
    the weights and the loss that a run for this level alone has. ``jax.vmap`` stacks
    programs.

    Args:
      program: one program; of it the inputs are used and, without ``W``, the response.
        A free bias moves along.
      W: the trained weights :math:`W_0`, ``[d_in, d_out]``; by default the
        least-squares solution of a program without limits.
      pattern: what goes together, and in which order units lose: ``Sparsity()`` (the
        default), ``Sparsity(scope="column")`` (one weight of each unit in turn),
        ``Blocks``, ``Inputs`` or ``Neurons``. Its level is not used.
      damping: as of ``LayerOBS``.

    Returns:
      The numbers of weights, their losses, and the weights at each by ``at``.

    Raises:
      ProgramError: it is no program, or ``W`` does not fit it.
      MethodError: the pattern or the damping is none, or the layer is too large.

    Example:
      >>> import jax
      >>> import nettrim_jax as nt
      >>> X = jax.random.normal(jax.random.key(0), (50, 10))
      >>> W = jax.random.normal(jax.random.key(1), (10, 3))
      >>> found = nt.trace(nt.linear_program(X, X @ W, 0.0))
      >>> int(found.left[6]), int((found.at(24) != 0).sum())
      (24, 24)
      >>> bool((found.losses[1:] >= found.losses[:-1]).all())
      True
    """
    pattern = Sparsity() if pattern is None else pattern
    if not isinstance(pattern, TRACED) or getattr(pattern, "scope", "") == "network":
        raise MethodError(
            f"trace(pattern={pattern!r}): expected Sparsity() of a layer or of "
            "columns, Blocks, Inputs or Neurons, which have a level"
        )
    if not is_damping(damping):
        raise MethodError(
            f"trace(damping={damping!r}): expected a finite number of at least 0"
        )
    if not isinstance(program, Program):
        raise ProgramError(
            f"trace: expected a program, got {type(program).__name__}; make one with "
            "nettrim_jax.linear_program(X, X @ W, 0.0)"
        )
    if program.X.ndim != 2:
        raise ProgramError(
            f"trace: expected one program, got a stack with X {list(program.X.shape)}; "
            "take jax.vmap(nettrim_jax.trace)(stack)"
        )
    if program.bias == "penalized":
        raise ProgramError(
            "trace: the program's bias is penalised, so it could go like a weight; "
            "make it with bias='fixed' or bias='free'"
        )
    shape = program.X.shape[1], program.response.Y.shape[0]
    within_reach(pattern, (1, *shape), "trace")
    given = None if W is None else numbers(W, program.X.dtype)
    if W is not None and (given is None or given.shape != shape):
        got = type(W).__name__ if given is None else list(given.shape)
        raise ProgramError(f"trace: expected W {list(shape)}, got {got}")
    on = program.response.on
    if given is None and known(on) and not bool(np.asarray(on).all()):
        raise ProgramError(
            "trace: where a clip such as a ReLU holds the response, it does not say "
            "what the weights are; give them, as in trace(program, W)"
        )
    # the order of all weights is that of every level
    pattern = dataclasses.replace(pattern, level=1.0)
    return _trace(program, given, jnp.asarray(damping, program.X.dtype), pattern)


@compiled(static_argnames="pattern", often=True)
def _trace(program: Program, W: Array | None, damping: Array, pattern: Any) -> Trace:
    X = program.X
    if program.bias == "free":
        X = X - jnp.mean(X, axis=0, keepdims=True)
    gram = matmul(X.T, X)[None]
    if W is None:
        off = program.response.Y - program.t
        H, right = damped(gram, matmul(X.T, off.T)[None], damping)
        W = matmul(inverse(H[0]), right[0])
    H, start = damped(gram, W[None], damping)
    order = order_of(pattern, H, start, None)
    place, steps = order.place[0], order.losses.size
    sizes = jnp.zeros(steps, jnp.int32).at[place.ravel() - 1].add(1)
    left = jnp.cumsum(jnp.concatenate([jnp.asarray([W.size], jnp.int32), -sizes]))
    losses = jnp.concatenate([jnp.zeros(1, X.dtype), jnp.cumsum(order.losses)])
    return Trace(left.astype(jnp.int32), losses, place, start[0], H[0])


@compiled(often=True)
def _at(found: Trace, left: Array) -> Array:
    gone = jnp.sum(found.left > left, dtype=jnp.int32)
    support = found.place > gone
    return fitted(found.H[None], found.W[None], support[None])[0]
