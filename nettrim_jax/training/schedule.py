"""What a schedule is, and what schedules have in common.

A schedule is a frozen record. Steps are counted from one: ``due(step)`` says whether
the mask is chosen anew in a step, and ``choose(step, seen)`` chooses it, from the
weights that the step would leave. Numbers of weights are computed on the host, in
float64, and looked up by the step, so they are exact whatever the step.

Knows arrays and patterns; knows no optimiser and no network.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._trees import STATIC
from nettrim_jax._values import whole
from nettrim_jax.methods.base import each_layer
from nettrim_jax.methods.counts import (
    counted,
    is_counted,
    leaving,
    of_how_many,
)
from nettrim_jax.methods.patterns import at_level, is_pattern, level_of
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array

SCORES = ("magnitude", "gradient", "movement")


class Seen(NamedTuple):
    """What a schedule chooses by, of layers of one shape, ``[l, b, d_in, d_out]``."""

    W: Array  # weights after the step, as the network meets them
    mask: Array  # bool, which were on
    gradient: Array  # of all weights, also of those that are off
    effect: Array  # weight times gradient
    movement: Array | None  # minus the sum of the effects of all steps
    key: Array  # of this step and these layers, for random numbers


class Chosen(NamedTuple):
    """What a schedule chose."""

    mask: Array  # [l, b, d_in, d_out] bool
    start: Array | None = None  # values of weights that come on; None for zeros


class Schedule(Protocol):
    """What :func:`nettrim_jax.train_sparse` asks of a schedule."""

    @property
    def shared(self) -> bool:
        """Whether the weights of all layers compete, as one layer."""
        ...

    @property
    def moves(self) -> bool:
        """Whether it asks for ``movement``."""
        ...

    @property
    def revives(self) -> bool:
        """Whether it says from which values weights start that come on."""
        ...

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises MethodError if it does not fit a layer."""
        ...

    def first(self, W: Array) -> Array | None:
        """The mask before the first step; None if all weights are on."""
        ...

    def due(self, step: Array) -> Array:
        """Whether the mask is chosen anew in this step, counted from one."""
        ...

    def choose(self, step: Array, seen: Seen) -> Chosen:
        """The mask after a step in which it is due."""
        ...


def is_schedule(value: Any) -> bool:
    """Whether a value has the functions of a schedule."""
    names = ("check", "first", "due", "choose")
    return all(callable(getattr(type(value), name, None)) for name in names)


@dataclasses.dataclass(frozen=True)
class Patterned:
    """A schedule of a pattern whose number changes."""

    pattern: Any = dataclasses.field(metadata=STATIC)

    @property
    def shared(self) -> bool:
        """Whether the weights of all layers compete, as one layer."""
        return getattr(self.pattern, "scope", None) == "network"

    @property
    def moves(self) -> bool:
        """Whether it asks for ``movement``."""
        return False

    @property
    def revives(self) -> bool:
        """Whether weights that come on start from other values than zero."""
        return False

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises MethodError if it does not fit a layer."""
        self.pattern.check(shape)

    def first(self, W: Array) -> Array | None:
        """The mask before the first step; None, for all weights are on."""
        return None

    def require(self, *, counts: bool = True) -> None:
        """Raises MethodError unless the pattern is one, and has a number."""
        name, pattern = type(self).__name__, self.pattern
        if not is_pattern(pattern):
            raise MethodError(
                f"{name}({pattern!r}): expected a pattern, such as "
                f"nettrim_jax.Sparsity(0.9), got {pattern!r}"
            )
        if hasattr(pattern, "level"):
            level_of(pattern)
        if counts and not is_counted(self.of((1, 1, 1), 1)):
            raise MethodError(
                f"{name}({pattern!r}): has no number that could change from step to "
                "step; take Sparsity, NM, Blocks, Neurons or Inputs, or "
                "DenseSparseDense"
            )

    def of(self, shape: tuple[int, ...], layers: int) -> Any:
        """The pattern for layers of one shape, with its number as an array."""
        pattern = at_level(self.pattern, self.pattern.level) if self.shared else None
        b, *sides = shape
        return counted(pattern or self.pattern, (layers * b, *sides), layers)

    def at(self, levels: np.ndarray, event: Array, like: Array) -> Any:
        """The pattern with the share of zeros after an event, for each of ``like``."""
        pattern = self.of(like.shape[1:], len(like))
        total = of_how_many(pattern, like.shape[1:])
        table = total - np.rint(levels * total).astype(np.int32)
        return leaving(pattern, each(table, event, len(like)))

    @property
    def level(self) -> float:
        """The share of zeros in the end."""
        pattern = self.pattern
        return pattern.level if hasattr(pattern, "level") else 1 - pattern.n / pattern.m


def scores(by: str, seen: Seen) -> Array:
    """How much each weight matters; of a group, the sum counts."""
    if by == "magnitude":
        return seen.W**2
    if by == "movement":
        assert seen.movement is not None
        return seen.movement
    known = jnp.isfinite(seen.effect).all((1, 2, 3), keepdims=True)
    return jnp.where(known, seen.effect**2, seen.W**2)


def keep(pattern: Any, score: Array, on: Array) -> Array:
    """What the pattern keeps of the weights that are on."""
    score = jnp.where(on, score, -jnp.inf)
    if not is_counted(pattern):
        return jax.vmap(pattern.keep)(score) & on
    return each_layer(kept, (pattern, score)) & on


def kept(pattern: Any, score: Array) -> Array:
    """What the pattern keeps of one layer."""
    return pattern.keep(score)


def each(table: np.ndarray, at: Array, layers: int) -> Array:
    """An entry of a table, once per layer."""
    return jnp.broadcast_to(jnp.asarray(table)[at], (layers,))


def integers(schedule: Any, least: dict[str, int]) -> None:
    """Makes fields integers of Python; raises MethodError if they are too small."""
    for name, low in least.items():
        value = getattr(schedule, name)
        if not whole(value) or value < low:
            raise MethodError(
                f"{type(schedule).__name__}({name}={value!r}): expected a number of "
                f"steps, an integer of at least {low}"
            )
        object.__setattr__(schedule, name, int(value))


def one_of(schedule: Any, name: str, words: Sequence[str]) -> None:
    """Raises MethodError unless a field is one of some words."""
    value = getattr(schedule, name)
    if value not in words:
        raise MethodError(
            f"{type(schedule).__name__}({name}={value!r}): expected one of {words}"
        )


def ascending(call: str, steps: Any) -> tuple[int, ...]:
    """Numbers of steps as integers of Python; raises MethodError if they fall."""
    good = isinstance(steps, tuple | list) and len(steps) > 0
    good = good and all(whole(step) and step >= 0 for step in steps)
    if not good or any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
        raise MethodError(
            f"{call}{steps!r}): expected numbers of steps in ascending order, such as "
            "(0, 1000)"
        )
    return tuple(map(int, steps))
