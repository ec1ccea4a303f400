"""Joins and splits stacks of problems, and runs functions over their entries.

Knows arrays; knows no method.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._compile import compiled
from nettrim_jax._numerics import by_turns, for_each
from nettrim_jax.typing import Array

# number of terms from which a CPU core spends longer on a product than on its start
SMALL = 2**14


def at_once(terms: int, size: int, memory: int) -> int:
    """The number of entries of a stack to solve together.

    Entries that run together wait for the slowest. On CPU only small ones gain from
    running together; on accelerators all do, as far as the memory allows.

    Args:
      terms: number of terms of the largest product of one entry.
      size: number of bytes that one entry takes.
      memory: number of bytes that all of them may take.
    """
    if jax.default_backend() == "cpu" and terms > SMALL:
        return 1
    return max(1, int(memory // max(size, 1)))


def each(function: Callable, stack: Any, *, chunk: int, **static: Any) -> Any:
    """Applies a function to each entry of a stack, at most ``chunk`` together.

    Args:
      function: a function of one entry, always the same object, so that it is compiled
        once per shape.
      stack: a pytree of arrays, with one entry per position of their first axis.
      chunk: the largest number of entries that run together.
      **static: hashable arguments of the function, passed by name.
    """
    return _each(function, stack, chunk, tuple(sorted(static.items())))


@compiled(static_argnames=("function", "chunk", "static"), often=True)
def _each(
    function: Callable, stack: Any, chunk: int, static: tuple[tuple[str, Any], ...]
) -> Any:
    function = functools.partial(function, **dict(static))
    if chunk >= length(stack):
        return for_each(function, stack)
    if chunk == 1:
        return jax.lax.map(function, stack)

    def some(places: Array) -> Any:
        return jax.vmap(function)(jax.tree.map(lambda a: a[places], stack))

    return by_turns(some, length(stack), chunk)


# the kinds of stacks so far
_SEEN: set[Any] = set()


def ready(stack: Any) -> bool:
    """Whether there was a stack of this kind and length before."""
    kind = length(stack), kind_of(stack)
    known = kind in _SEEN
    _SEEN.add(kind)
    return known


def length(stack: Any) -> int:
    """The number of entries of a stack."""
    return jax.tree.leaves(stack)[0].shape[0]


def kind_of(stack: Any) -> tuple[Any, ...]:
    """The structure, shapes and dtypes, which stacks must share to be joined."""
    leaves, tree = jax.tree.flatten(stack)
    return tree, tuple((leaf.shape[1:], str(leaf.dtype)) for leaf in leaves)


def joined(stacks: Sequence[Any]) -> Any:
    """Joins stacks of one kind along their first axis."""
    return stacks[0] if len(stacks) == 1 else _joined(tuple(stacks))


@compiled()
def _joined(stacks: tuple[Any, ...]) -> Any:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *stacks)


def parted(stack: Any, sizes: Sequence[int]) -> tuple[Any, ...]:
    """Splits a joined stack into stacks of these sizes."""
    return (stack,) if len(sizes) == 1 else _parted(stack, tuple(sizes))


@compiled(static_argnames="sizes")
def _parted(stack: Any, sizes: tuple[int, ...]) -> tuple[Any, ...]:
    ends = np.cumsum(sizes)
    return tuple(
        jax.tree.map(lambda a: a[end - size : end], stack)  # noqa: B023
        for end, size in zip(ends, sizes, strict=True)
    )
