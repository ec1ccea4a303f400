"""Many layers' programs in few calls: one bucket, call and compilation per shape.

Knows programs and the solver; knows no model.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax.convex import admm, least_squares
from nettrim_jax.convex.config import ADMM
from nettrim_jax.convex.programs import Program
from nettrim_jax.convex.solution import Solution
from nettrim_jax.methods import reconstruct
from nettrim_jax.methods.quadratic import Seen
from nettrim_jax.methods.reconstruct import RIDGES, UNITS, Reconstruct
from nettrim_jax.typing import Array

# products of this many terms take a CPU core longer than to be started
SMALL = 2**14


@functools.partial(jax.jit, static_argnames=("config", "chunk"))
def solve_stack(
    program: Program, config: ADMM, chunk: int, before: Solution | None = None
) -> Solution:
    """Solves a stack of programs, at most ``chunk`` lanes at a time.

    ``before`` holds what lanes of a like stack ended with.
    """

    def solve(lane: tuple[Program, Solution | None]) -> Solution:
        return admm.solve(lane[0], config, lane[1])

    return _by_lanes(solve, (program, before), chunk)


@functools.partial(jax.jit, static_argnames="chunk")
def refit_stack(
    program: Program, W: Array, bias: Array, chunk: int, support: Array | None = None
) -> tuple[Array, Array]:
    """The best values of a stack, ``[b, ...]``, on the supports of ``W`` or these."""

    def refit(lane: tuple) -> tuple[Array, Array]:
        return least_squares.refit(*lane)

    return _by_lanes(refit, (program, W, bias, support), chunk)


@functools.partial(jax.jit, static_argnames=("relu", "free", "chunk"))
def reconstruct_stack(
    method: Reconstruct, seen: Seen, relu: bool, free: bool, chunk: int
) -> tuple[Array, Array]:
    """A stack of layers to an exact budget, at most ``chunk`` at a time.

    Arrays of the method have one entry per layer.
    """

    def one(both: tuple[Reconstruct, Seen]) -> tuple[Array, Array]:
        return reconstruct.reconstruct(*both, relu, free)

    return _by_lanes(one, (method, seen), chunk)


def layers_at_once(seen: Seen, memory: int) -> int:
    """How many layers of a stack to reconstruct together; as for programs."""
    _, b, n, d_in = seen.X.shape
    d_out = seen.W0.shape[3]
    if jax.default_backend() == "cpu" and b * n * d_in * d_out > SMALL:
        return 1
    arrays = 2 * n * d_in + 6 * n * d_out + 8 * d_in * d_out + 6 * d_in**2
    # the ridges that are tried run together, on a few of the units
    arrays += len(RIDGES) * (2 * n + 8 * d_in) * min(d_out, UNITS)
    arrays += 0 if seen.metric is None else 4 * d_out**2
    return max(1, int(memory // (b * arrays * seen.X.dtype.itemsize)))


def reconstruct_all(
    stacks: Sequence[tuple[Reconstruct, Seen, bool, bool]],
    memory: int,
    done: Callable[[int], None],
) -> list[tuple[Array, Array]]:
    """Reconstructs every stack; stacks that are alike share one call.

    Args:
      stacks: a method, layers ``[l, b, ...]``, whether a ReLU follows, and whether the
        bias moves.
      memory: bytes that one call may take.
      done: called after each call with how many stacks are done by then.

    Returns:
      Weights and the movement of biases, in the order of ``stacks``.
    """

    def run(members: list[int]) -> list[tuple[Array, Array]]:
        method, joined = _joined([stacks[i][:2] for i in members])
        chunk = layers_at_once(joined, memory)
        answer = reconstruct_stack(method, joined, *stacks[members[0]][2:], chunk)
        return _parts(answer, [stacks[i][1].X.shape[0] for i in members])

    kinds = [
        (jax.tree.structure(method), _shapes(seen), relu, free)
        for method, seen, relu, free in stacks
    ]
    return _by_kind(kinds, run, done)


def nowhere(stack: Program, config: ADMM) -> Solution:
    """A start for every lane that is passed over: one program, warm or not."""
    shapes = jax.eval_shape(lambda: solve_stack(stack, config, 1))
    return jax.tree.map(
        lambda a: jnp.full(
            a.shape, jnp.nan if jnp.issubdtype(a.dtype, jnp.floating) else 0, a.dtype
        ),
        shapes,
    )


def _shapes(stack: Any) -> tuple[Any, ...]:
    """Shapes of one member of a stack, and the structure."""
    leaves, tree = jax.tree.flatten(stack)
    return tree, tuple((leaf.shape[1:], str(leaf.dtype)) for leaf in leaves)


def _by_kind(
    kinds: Sequence[Any],
    run: Callable[[list[int]], Sequence[Any]],
    done: Callable[[int], None],
) -> list[Any]:
    """What ``run`` answers to the members of each kind, in the order of ``kinds``."""
    buckets: dict[Any, list[int]] = {}
    for i, kind in enumerate(kinds):
        buckets.setdefault(kind, []).append(i)
    out: dict[int, Any] = {}
    for members in buckets.values():
        out |= zip(members, run(members), strict=True)
        done(len(out))
    return [out[i] for i in range(len(kinds))]


def _parts(stack: Any, sizes: Sequence[int]) -> list[Any]:
    """What was joined, apart again."""
    ends = np.cumsum(sizes)
    return [
        jax.tree.map(lambda a: a[end - size : end], stack)  # noqa: B023
        for end, size in zip(ends, sizes, strict=True)
    ]


def _joined(stacks: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *stacks)


def _by_lanes(function: Callable, stack: Any, chunk: int) -> Any:
    """The function of every lane, at most ``chunk`` lanes at a time."""
    if chunk >= jax.tree.leaves(stack)[0].shape[0]:
        return jax.vmap(function)(stack)
    if chunk == 1:
        return jax.lax.map(function, stack)
    return jax.lax.map(function, stack, batch_size=chunk)


def lanes_at_once(program: Program, memory: int) -> int:
    """How many lanes of a stack to solve together.

    Lanes that run together wait for the slowest. On CPU only small ones gain from
    that; on accelerators all do, as far as the memory goes.
    """
    _, n, d_in = program.X.shape
    d_out = program.response.Y.shape[1]
    if jax.default_backend() == "cpu" and n * d_in * d_out > SMALL:
        return 1
    return max(1, int(memory // lane_bytes(program)))


def lane_bytes(program: Program) -> int:
    """About how much memory the solve of one lane of a stack takes, in bytes."""
    _, n, d_in = program.X.shape
    d_out = program.response.Y.shape[1]
    small = min(n, d_in)
    arrays = 3 * n * d_in + 12 * n * d_out + 8 * d_in * d_out + 4 * small**2
    return arrays * program.X.dtype.itemsize


def solve_all(
    stacks: Sequence[Program],
    config: ADMM,
    memory: int,
    done: Callable[[int], None] = lambda stacks: None,
    before: Sequence[Solution | None] | None = None,
) -> list[Solution]:
    """Solves every stack; stacks of one shape are solved in one call.

    Args:
      stacks: programs with a leading lane axis.
      config: the solver's settings.
      memory: bytes that one call may take.
      done: called after each bucket with how many stacks are solved by then.
      before: solutions of like stacks to start from.

    Returns:
      The solutions, in the order of ``stacks``.
    """

    def run(members: list[int]) -> list[Solution]:
        joined = _joined([stacks[i] for i in members])
        starts = None if before is None else _joined([before[i] for i in members])
        chunk = lanes_at_once(joined, memory)
        solution = solve_stack(joined, config, chunk, starts)
        return _parts(solution, [stacks[i].X.shape[0] for i in members])

    return _by_kind([_shapes(stack) for stack in stacks], run, done)
