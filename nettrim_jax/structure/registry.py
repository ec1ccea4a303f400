"""The table of rules, and what all of them need.

A rule has two halves. One follows axes: from what is known of the operands to what is
known of the results. The other runs the operation once indices are removed. A rule is
registered under the names of its primitives, in the file of its family.

Knows operations by name; knows no program.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nettrim_jax.structure.ids import Ids
from nettrim_jax.structure.values import Axis, Value
from nettrim_jax.tracing import jaxprs

Kept = tuple[np.ndarray | None, ...]  # per axis, which indices are kept; None for all


class Follower(Protocol):
    """What a rule may ask of the walk that calls it."""

    ids: Ids

    def unite(self, axes: Sequence[Axis]) -> Axis:
        """One axis for several that are indexed alike; its levels are the first's."""
        ...

    def stay(self, axis: Axis, why: str) -> Axis:
        """An axis all of whose indices have to stay."""
        ...

    def fresh(self, size: Any, level: np.ndarray) -> Axis:
        """An axis that nothing else has, with ``level`` at every index."""
        ...

    def contract(self, eqn: Any, act: Axis, weight: Axis) -> np.ndarray | None:
        """Sums over an axis of two operands; which sums miss nothing."""
        ...

    def product(self, eqn: Any, value: Value, record: "Product") -> Value:
        """Notes a linear operation; gives its result the operation's number."""
        ...

    def part(self, axis: Axis) -> Axis:
        """Notes that an axis is a part cut out of another one."""
        ...

    def call(self, body: Any, inputs: Any, loop: int | None = None) -> list[Value]:
        """The results of a body that the operation runs."""
        ...

    def again(self) -> None:
        """Forgets the bodies of the operation at hand, which are run once more."""
        ...

    def enter(self, length: Any) -> int:
        """The number of a loop of so many steps within what is walked through."""
        ...

    def stepped(self, origin: tuple[int, int], loop: int) -> None:
        """Notes that a loop goes through an axis of a leaf."""
        ...

    def everything_stays(self, eqn: Any, inputs: list[Value]) -> list[Value]:
        """The results of an operation of which nothing is known."""
        ...

    def biased(self, response: int, bias: Value) -> None:
        """Notes that a leaf is added to the result of a linear operation."""
        ...


class Product(NamedTuple):
    """A linear operation as a rule has seen it.

    Attributes:
      act: the position of the operand that is no leaf; -1 if both are none.
      leaf: the other operand, where it is entries of a leaf or constant.
      source: the leaf or constant that the other operand is computed from.
      inputs: the ids that are summed over, per contracted axis.
      outputs: the ids of what it makes, per axis of the other operand.
      axis: the contracted axis of ``act`` if there is one, else -1.
      weight: the ids of that axis as the other operand has them.
      missed: at which of its indices the sum misses something as given, ``[n]`` bool.
      constant: at which of them the activation is one constant, ``[n]`` bool.
      padded: whether zeros are put around the activation.
    """

    act: int
    leaf: int | None
    source: int | None
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    axis: int = -1
    weight: np.ndarray | None = None
    missed: np.ndarray | None = None
    constant: np.ndarray | None = None
    padded: bool = False


Follow = Callable[[Any, Any, list[Value]], list[Value]]
Rewrite = Callable[[Any, list[Any], "Cut"], list[Any]]


class Cut(NamedTuple):
    """Where indices are removed around an operation.

    Attributes:
      before: per operand, the indices that are kept of each axis.
      after: the same per result.
      bodies: the operation's bodies, as functions of what they are given.
      values: what is known of the operands.
    """

    before: list[Kept]
    after: list[Kept]
    bodies: list[Callable[..., list[Any]]]
    values: list[Value]


class Rule(NamedTuple):
    """What is done with one kind of operation.

    Attributes:
      follow: from the walk, the operation and its operands' values to its results'.
      rewrite: from the operation, its operands with indices removed, and where that
        was, to its results with indices removed.
    """

    follow: Follow
    rewrite: Rewrite


RULES: dict[str, Rule] = {}


def as_it_is(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    """Runs an operation whose parameters say nothing of sizes."""
    return jaxprs.bind(eqn.primitive, eqn.params, args)


def full_then_taken(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    """Runs an operation at its full size, and takes what is kept."""
    results = jaxprs.bind(eqn.primitive, eqn.params, args)
    return [taken(a, kept) for a, kept in zip(results, cut.after, strict=True)]


def with_params(eqn: Any, args: Sequence[Any], **changed: Any) -> list[Any]:
    """Runs an operation with some other parameters."""
    return jaxprs.bind(eqn.primitive, {**eqn.params, **changed}, args)


def rule(names: str, rewrite: Rewrite = as_it_is) -> Callable[[Follow], Follow]:
    """Registers what follows as the rule of these primitives."""

    def add(follow: Follow) -> Follow:
        for name in names.split():
            assert name not in RULES, name
            RULES[name] = Rule(follow, rewrite)
        return follow

    return add


def all_stay(walk: Follower, axes: Iterable[Axis], why: str) -> Axis:
    """Several axes have to stay, and so does what is made of them."""
    for axis in axes:
        walk.stay(axis, why)
    return Axis(None, why)


def axes_of(inputs: Iterable[Value]) -> Iterable[Axis]:
    """The axes of some operands."""
    return (axis for value in inputs for axis in value.axes)


def sizes(shape: Sequence[Any], kept: Kept) -> tuple[Any, ...]:
    """A shape once indices are removed."""
    return tuple(
        size if k is None else len(k) for size, k in zip(shape, kept, strict=True)
    )


def taken(array: Any, kept: Kept) -> Any:
    """The entries of an array at the kept indices."""
    for axis, indices in enumerate(kept):
        if indices is not None:
            array = picked(array, axis, indices)
    return array


def picked(array: Any, axis: int, indices: np.ndarray) -> Any:
    """The entries at some indices of an axis; known arrays stay on the host."""
    if isinstance(array, np.ndarray):
        return np.take(array, indices, axis)
    size = array.shape[axis]
    if len(indices) == size and np.array_equal(indices, np.arange(size)):
        return array
    steps = np.unique(np.diff(indices))
    if len(indices) and (not steps.size or (steps.size == 1 and steps[0] > 0)):
        step = int(steps[0]) if steps.size else 1
        first, last = int(indices[0]), int(indices[-1])
        return lax.slice_in_dim(array, first, last + 1, step, axis)
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return array[(slice(None),) * axis + (indices,)]
    return jnp.take(array, indices, axis, mode="clip")
