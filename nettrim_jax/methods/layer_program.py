"""The convex programs of one site, from its activations, and their solution.

Knows programs and the solver; knows no network.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from nettrim_jax._compile import compiled, traced
from nettrim_jax._numerics import norm
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.convex import admm, least_squares, programs
from nettrim_jax.convex.build import check_shapes, clip_program
from nettrim_jax.convex.config import ADMM
from nettrim_jax.convex.masked import Masked
from nettrim_jax.convex.penalties import Penalty
from nettrim_jax.convex.programs import Program
from nettrim_jax.convex.solution import Solution
from nettrim_jax.methods.base import Cost, Lanes, LayerData, LayerKind
from nettrim_jax.typing import Array, ArrayLike


class Asked(Protocol):
    """The attributes of :class:`nettrim_jax.NetTrim` that define a program."""

    @property
    def epsilon(self) -> ArrayLike | None:
        """The budget, relative to the norm of the response."""
        ...

    @property
    def gamma(self) -> ArrayLike:
        """The factor by which a layer of a cascade may increase its squared error."""
        ...

    @property
    def penalty(self) -> Penalty:
        """The penalty, which is minimised."""
        ...

    entitled: ClassVar[bool]  # whether a layer of a cascade may use all of its epsilon


class LayerPrograms(NamedTuple):
    """The programs of a site's lanes."""

    program: Program  # with a leading lane axis
    budget: Array  # [b], relative to the norm of the lane's trained response


def program_cost(program: Program) -> Cost:
    """The cost of one lane of a stack of programs."""
    _, n, d_in = program.X.shape
    d_out = program.response.Y.shape[1]
    small = min(n, d_in)
    arrays = 3 * n * d_in + 12 * n * d_out + 8 * d_in * d_out + 4 * small**2
    return Cost(n * d_in * d_out, arrays * program.X.dtype.itemsize)


def solve_lane(lane: tuple[Program, Solution | None], config: ADMM) -> Solution:
    """Solves one program, from the solution of a similar one if that is given."""
    return admm.solve(lane[0], config, lane[1])


def solve_lanes(stack: tuple[Program, Solution | None], lanes: Lanes) -> Solution:
    """Solves a stack of programs, as :func:`solve_lane` does each."""
    if traced(stack):
        return lanes.each(solve_lane, stack, config=lanes.config)
    return admm.by_stages(lanes.each, stack, lanes.config)


def refit_lane(lane: tuple) -> tuple[Array, Array]:
    """The best values of one program, ``W``, ``b`` and, if it is given, a support."""
    return least_squares.refit(*lane)


@compiled()
def reweight(program: Program, solution: Solution) -> Program:
    """The next round's program of each lane, from the first and its last solution."""
    return jax.vmap(programs.reweighted)(program, solution.W, solution.bias)


@compiled(static_argnames=("bias", "kind"))
def prepared(
    method: Asked, data: LayerData, bias: str, kind: LayerKind
) -> LayerPrograms:
    """The programs of a site on all rows but those held out."""
    seen = data.seen
    if bias == "penalized" and data.bias0 is not None:
        # the whole bias is a variable, so none of it stays in t
        t = seen.t - (data.bias0 * seen.gain)[:, None, :]
        data = data._replace(seen=seen._replace(t=t))
    return programs_of(method, data.to_fit(kind.held), bias, kind, data.allowed)


def programs_of(
    method: Asked,
    seen: Activation,
    bias: str,
    kind: LayerKind,
    allowed: Array | None = None,
) -> LayerPrograms:
    """The program of every lane of a site, stacked.

    The columns of a program are the units' weights times ``seen.scale``, so the penalty
    divides by it. A unit of scale zero has the least penalty at zero weights.

    Args:
      method: the attributes that define the program.
      seen: the rows to solve on, ``[b, n, ...]``.
      bias: ``method.bias``, or ``"fixed"`` for a site without a bias.
      kind: what clips its response, and whether pruned layers feed the site.
      allowed: the weights that may be left, ``[b, d_in, d_out]``; None for all.

    Returns:
      The program, with a leading lane axis, and each lane's budget relative to the
      norm of its trained response.
    """
    clip = kind.clip
    assert method.epsilon is not None, "a search gives every layer its epsilon"
    epsilon = jnp.asarray(method.epsilon, seen.X.dtype)
    gamma = jnp.asarray(method.gamma, seen.X.dtype)

    def lane(seen: Activation, allowed: Array | None) -> LayerPrograms:
        valid = seen.valid[:, None]
        Y = jnp.where(valid, clip(seen.P), 0)
        size = norm(Y)
        # always of this shape, so that one solver is compiled
        budget, limit = epsilon * size, Y
        if kind.fed and seen.P0 is not None:
            on = valid & clip.passes(Y)
            off = norm(jnp.where(on, seen.P0 - Y, 0))
            # where all earlier layers stayed as trained there is nothing to scale
            moved = off > 8 * jnp.finfo(off.dtype).eps * size
            least = jnp.sqrt(gamma) * off
            least = jnp.maximum(least, budget) if method.entitled else least
            budget = jnp.where(moved, least, budget)
            limit = jnp.where(moved, seen.P0, Y)
        d_in, d_out = seen.X.shape[1], Y.shape[1]
        scales = jnp.broadcast_to(seen.scale[None, :], (d_in, d_out))
        if bias == "penalized":  # the bias moves the response by its gain
            scales = jnp.concatenate([scales, seen.gain[None, :]])
        check_shapes(method.penalty, scales.shape)
        penalty: Any = method.penalty.scaled(1 / jnp.where(scales != 0, scales, 1))
        if allowed is not None:
            # a penalised bias, the last row, is always allowed
            more = ((0, len(scales) - d_in), (0, 0))
            mask = jnp.pad(allowed, more, constant_values=True)
            penalty = Masked(penalty, mask)
        X = jnp.where(valid, seen.X, 0)
        t = jnp.where(valid, seen.t, 0)
        program = clip_program(X, Y, budget, *clip, t=t, penalty=penalty, bias=bias)
        # a row that does not count is off, and free
        lower, V = clip.sides(Y, limit)
        V = jnp.where(valid, V, jnp.inf).T
        lower = None if lower is None else jnp.where(valid, lower, -jnp.inf).T
        on = program.response.on & valid.T
        response = dataclasses.replace(program.response, on=on, V=V, lower=lower)
        program = dataclasses.replace(program, response=response)
        known_size = jnp.where(size > 0, size, 1)
        return LayerPrograms(program, jnp.where(size > 0, budget / known_size, 0))

    return jax.vmap(lane)(seen, allowed)
