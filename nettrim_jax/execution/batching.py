"""Stacks of problems: joined and parted, and a function of each of their entries.

Knows arrays only.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# products of this many terms take a CPU core longer than to be started
SMALL = 2**14


def at_once(terms: int, size: int, memory: int) -> int:
    """How many entries of a stack to solve together.

    Entries that run together wait for the slowest. On CPU only small ones gain from
    that; on accelerators all do, as far as the memory goes.

    Args:
      terms: of the largest product of one entry.
      size: bytes that one entry takes.
      memory: bytes that all of them may take.
    """
    if jax.default_backend() == "cpu" and terms > SMALL:
        return 1
    return max(1, int(memory // max(size, 1)))


def each(function: Callable, stack: Any, *, chunk: int, **static: Any) -> Any:
    """The function of every entry along the first axis, at most ``chunk`` together.

    Args:
      function: of one entry, defined once, so that it is compiled once per shape.
      stack: a pytree of arrays.
      chunk: how many entries run together.
      **static: hashable values that the function is given by name.
    """
    return _each(function, stack, chunk, tuple(sorted(static.items())))


@functools.partial(jax.jit, static_argnames=("function", "chunk", "static"))
def _each(
    function: Callable, stack: Any, chunk: int, static: tuple[tuple[str, Any], ...]
) -> Any:
    function = functools.partial(function, **dict(static))
    if chunk >= jax.tree.leaves(stack)[0].shape[0]:
        return jax.vmap(function)(stack)
    if chunk == 1:
        return jax.lax.map(function, stack)
    return jax.lax.map(function, stack, batch_size=chunk)


def length(stack: Any) -> int:
    """How many entries a stack has."""
    return jax.tree.leaves(stack)[0].shape[0]


def kind_of(stack: Any) -> tuple[Any, ...]:
    """What stacks that can be joined have in common: structure, shapes and dtypes."""
    leaves, tree = jax.tree.flatten(stack)
    return tree, tuple((leaf.shape[1:], str(leaf.dtype)) for leaf in leaves)


def joined(stacks: Sequence[Any]) -> Any:
    """Stacks of one kind, one after another."""
    return stacks[0] if len(stacks) == 1 else _joined(tuple(stacks))


@jax.jit
def _joined(stacks: tuple[Any, ...]) -> Any:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *stacks)


def parted(stack: Any, sizes: Sequence[int]) -> tuple[Any, ...]:
    """What was joined, apart again."""
    return (stack,) if len(sizes) == 1 else _parted(stack, tuple(sizes))


@functools.partial(jax.jit, static_argnames="sizes")
def _parted(stack: Any, sizes: tuple[int, ...]) -> tuple[Any, ...]:
    ends = np.cumsum(sizes)
    return tuple(
        jax.tree.map(lambda a: a[end - size : end], stack)  # noqa: B023
        for end, size in zip(ends, sizes, strict=True)
    )
