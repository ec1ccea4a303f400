"""Patterns, which say by an exact choice which weights of a layer may be left.

A pattern is a hashable configuration. Its ``keep(score)`` marks the highest of the
scores ``[b, d_in, d_out]`` that it allows, and the first among equals. The scores of
weights are energies (squares), so the score of a group is their sum.

The lanes of one operation (groups, heads, experts) share a pattern's count. The inputs
of a unit are in the order of the folded problem: an input of a convolution is one
channel at one place of the window, and all channels of a place are side by side.

Knows arrays; knows no method and no network.
"""

import dataclasses
import math
from typing import Any, ClassVar

from jax.tree_util import register_dataclass

from nettrim_jax._numerics import numpy_of
from nettrim_jax._trees import STATIC
from nettrim_jax._values import flag, number, whole
from nettrim_jax.methods.budget import Share
from nettrim_jax.methods.ranking import highest
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array

Shape = tuple[int, ...]  # b, d_in, d_out
SCOPES = ("layer", "column", "network")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Sparsity:
    """A share of the weights is zero.

    With ``scope="network"`` the share is that of all layers that have the same method,
    or an equal one, and ``prune`` finds how many weights each layer keeps.
    :class:`Magnitude`, :class:`OBD`, :class:`Fisher` and :class:`Saliency` score all
    their weights alike, and compare them at once. For any other method, each
    layer is solved at several levels and the network is measured, on a batch split in
    three: half to solve on, a quarter to choose the numbers, and a quarter to compare
    the choice with equal shares, which are taken if the output then moves less (over
    all that the network returns, but for what ``weights`` leave out). Finally the
    layers are pruned to these numbers on all rows. This needs concrete values and nine
    to twelve solves of each layer.

    Attributes:
      level: the share of zeros, in [0, 1]; ``round(level * size)`` weights are zero.
        None leaves it to the budget of a method, as in ``Reconstruct(Sparsity(),
        deviation=0.05)``, where a number is the most that a layer may lose.
      scope: the weights that ``size`` counts. ``"layer"``: all weights of the layer.
        ``"column"``: the weights of one unit, for each unit. ``"network"``: the weights
        of all layers.

    Raises:
      MethodError: an attribute is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> nt.Sparsity(0.5).keep(jnp.array([[[4.0, 3.0], [2.0, 1.0]]]))[0].tolist()
      [[True, True], [False, False]]
    """

    level: float | None = dataclasses.field(default=None, metadata=STATIC)
    scope: str = dataclasses.field(default="layer", metadata=STATIC)

    def __post_init__(self):
        _share("Sparsity", self.level)
        if self.scope not in SCOPES:
            raise MethodError(
                f"Sparsity(scope={self.scope!r}): expected one of {SCOPES}"
            )

    def check(self, shape: Shape) -> None:
        """Raises MethodError if the pattern does not fit a layer."""

    def nonzeros(self, shape: Shape) -> Any:
        """The number of weights of a layer that are left."""
        b, d_in, d_out = shape
        self._of_a_layer()
        if self.scope == "column":
            return b * d_out * (d_in - round(level_of(self) * d_in))
        return math.prod(shape) - round(level_of(self) * math.prod(shape))

    def keep(self, score: Array) -> Array:
        """The weights to keep, ``[b, d_in, d_out]`` bool."""
        left = self.nonzeros(score.shape)
        return self.largest(score, left)

    def largest(self, score: Array, left: Any) -> Array:
        """Marks the ``left`` highest; under ``"column"`` each unit has as many."""
        b, _, d_out = score.shape
        self._of_a_layer()
        if self.scope == "column":
            return highest(score, left // (b * d_out), axis=1)
        return highest(score.ravel(), left, axis=0).reshape(score.shape)

    def _of_a_layer(self) -> None:
        if self.scope == "network":
            raise MethodError(
                f"Sparsity({self.level}, scope='network'): says how many weights all "
                "layers keep together, not how many one keeps; nettrim_jax.prune "
                "chooses that. For one layer take scope='layer'"
            )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class NM:
    """At most ``n`` of every ``m`` consecutive weights of a unit are left.

    In a convolution they belong to channels at one place of the window, if ``m``
    divides the number of channels.

    Attributes:
      n: number of weights of a group that are left, at least 0.
      m: number of weights of a group, at least 1 and at least ``n``.
      pad: whether the last group may be smaller, where ``m`` does not divide the number
        of inputs.

    Raises:
      MethodError: an attribute is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> score = jnp.array([1.0, 4.0, 3.0, 2.0]).reshape(1, 4, 1)
      >>> nt.NM(2, 4).keep(score).ravel().tolist()
      [False, True, True, False]
    """

    n: int = dataclasses.field(metadata=STATIC)
    m: int = dataclasses.field(metadata=STATIC)
    pad: bool = dataclasses.field(default=False, metadata=STATIC)

    def __post_init__(self):
        good = whole(self.n) and whole(self.m)
        if not good or not 0 <= self.n <= self.m or self.m < 1:
            raise MethodError(
                f"NM({self.n!r}, {self.m!r}): expected integers n and m with "
                "0 <= n <= m, such as NM(2, 4)"
            )
        _plain(self, n=int(self.n), m=int(self.m), pad=self.pad)

    def check(self, shape: Shape) -> None:
        """Raises MethodError if the pattern does not fit a layer."""
        if shape[1] % self.m and not self.pad:
            raise MethodError(
                f"NM({self.n}, {self.m}): {self.m} does not divide the {shape[1]} "
                f"inputs of a unit; NM({self.n}, {self.m}, pad=True) lets the last "
                "group be shorter, exclude= leaves the layer out"
            )

    def keep(self, score: Array) -> Array:
        """The weights to keep, ``[b, d_in, d_out]`` bool."""
        b, d_in, d_out = score.shape
        missing = -d_in % self.m
        xp = numpy_of(score)
        padded = xp.pad(score, ((0, 0), (0, missing), (0, 0)), constant_values=-xp.inf)
        groups = padded.reshape(b, -1, self.m, d_out)
        kept = highest(groups, self.n, axis=2)
        return kept.reshape(b, -1, d_out)[:, :d_in]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """A share of the blocks of ``W`` is zero, and the others stay whole.

    Attributes:
      level: the share, in [0, 1]; ``round(level * blocks)`` of them are zero. None
        leaves it to the budget of a method, as for :class:`Sparsity`.
      shape: number of inputs and number of units of a block.
      pad: whether the last blocks may be smaller, where ``shape`` does not divide the
        layer's shape.

    Raises:
      MethodError: an attribute is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> score = jnp.array([[1.0, 5.0], [1.0, 0.0]])[None]
      >>> nt.Blocks(0.5, (2, 1)).keep(score)[0].tolist()
      [[False, True], [False, True]]
    """

    level: float | None = dataclasses.field(metadata=STATIC)
    shape: tuple[int, int] = dataclasses.field(metadata=STATIC)
    pad: bool = dataclasses.field(default=False, metadata=STATIC)

    def __post_init__(self):
        _share("Blocks", self.level)
        good = isinstance(self.shape, tuple) and len(self.shape) == 2
        if not good or not all(whole(k) and k >= 1 for k in self.shape):
            raise MethodError(
                f"Blocks(shape={self.shape!r}): expected inputs and units of a block, "
                "two integers of at least 1, such as (4, 4)"
            )
        _plain(self, shape=tuple(map(int, self.shape)), pad=self.pad)

    def check(self, shape: Shape) -> None:
        """Raises MethodError if the pattern does not fit a layer."""
        for size, block, what in zip(
            shape[1:], self.shape, ("inputs", "units"), strict=True
        ):
            if size % block and not self.pad:
                raise MethodError(
                    f"Blocks({self.level}, {self.shape}): {block} does not divide the "
                    f"{size} {what}; pad=True lets the last blocks be smaller, "
                    "exclude= leaves the layer out"
                )

    def keep(self, score: Array) -> Array:
        """The weights to keep, ``[b, d_in, d_out]`` bool."""
        b, d_in, d_out = score.shape
        r, c = self.shape
        xp = numpy_of(score)
        padded = xp.pad(score, ((0, 0), (0, -d_in % r), (0, -d_out % c)))
        rows, columns = padded.shape[1] // r, padded.shape[2] // c
        sums = padded.reshape(b, rows, r, columns, c).sum((2, 4))
        kept = highest(sums.ravel(), self.number(sums.size), 0)
        kept = kept.reshape(b, rows, 1, columns, 1)
        kept = xp.broadcast_to(kept, (b, rows, r, columns, c))
        return kept.reshape(padded.shape)[:, :d_in, :d_out]

    def number(self, count: int) -> Any:
        """The number of blocks that are left, of so many."""
        return count - round(level_of(self) * count)


@dataclasses.dataclass(frozen=True)
class _Lines:
    """A share of the lines along one axis is zero, and the others stay whole."""

    level: float | None = dataclasses.field(default=None, metadata=STATIC)
    axis: ClassVar[int]

    def __post_init__(self):
        _share(type(self).__name__, self.level)

    def check(self, shape: Shape) -> None:
        """Raises MethodError if the pattern does not fit a layer."""

    def keep(self, score: Array) -> Array:
        """The weights to keep, ``[b, d_in, d_out]`` bool."""
        sums = score.sum(self.axis, keepdims=True)
        kept = highest(sums.ravel(), self.number(sums.size), 0)
        return numpy_of(score).broadcast_to(kept.reshape(sums.shape), score.shape)

    def number(self, count: int) -> Any:
        """The number of lines that are left, of so many."""
        return count - round(level_of(self) * count)


@register_dataclass
class Neurons(_Lines):
    """A share of the units, whole columns of ``W``, is zero.

    Attributes:
      level: the share, in [0, 1]; ``round(level * units)`` of them are zero. None
        leaves it to the budget of a method, as for :class:`Sparsity`.

    Raises:
      MethodError: the share is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> nt.Neurons(0.5).keep(jnp.array([[[1.0, 2.0], [1.0, 3.0]]]))[0].tolist()
      [[False, True], [False, True]]
    """

    axis = 1


@register_dataclass
class Inputs(_Lines):
    """A share of the inputs, whole rows of ``W``, is zero.

    An input of a convolution is one channel at one place of the window.

    Attributes:
      level: the share, in [0, 1]; ``round(level * inputs)`` of them are zero. None
        leaves it to the budget of a method, as for :class:`Sparsity`.

    Raises:
      MethodError: the share is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> nt.Inputs(0.5).keep(jnp.array([[[1.0, 2.0], [1.0, 3.0]]]))[0].tolist()
      [[False, False], [True, True]]
    """

    axis = 2


Pattern = Sparsity | NM | Blocks | Neurons | Inputs


def is_pattern(value: Any) -> bool:
    """Whether a value has the functions of a pattern."""
    return all(callable(getattr(type(value), name, None)) for name in ("check", "keep"))


def level_of(pattern: Any) -> float:
    """The share of zeros of a pattern; raises MethodError if it is left open."""
    if pattern.level is None:
        name = type(pattern).__name__
        raise MethodError(
            f"{name}: its level is open; give a share of zeros, such as 0.9, or what "
            "the network may lose, as by Reconstruct(pattern, deviation=0.05)"
        )
    return pattern.level


def at_level(pattern: Any, level: float) -> Any:
    """A pattern with this share of zeros, or with its own if that is less."""
    level = level if pattern.level is None else min(level, pattern.level)
    given = {"scope": "layer"} if getattr(pattern, "scope", None) == "network" else {}
    return dataclasses.replace(pattern, level=level, **given)


def check_level(pattern: Any, asker: str, *, budget: bool) -> None:
    """Raises MethodError unless a method's pattern has a level where it needs one.

    Args:
      pattern: the pattern.
      asker: the name of the method.
      budget: whether a search chooses the level, for a budget of the network.
    """
    has = hasattr(pattern, "level")
    if has and not budget:
        level_of(pattern)
    if not budget:
        return
    if not has:
        raise MethodError(
            f"{asker}({pattern!r}): has no level that a search for a budget could "
            "choose; take Sparsity(), Blocks(None, ...), Neurons() or Inputs()"
        )
    if getattr(pattern, "scope", None) == "network" and pattern.level is not None:
        raise MethodError(
            f"{asker}({pattern!r}): with a budget a search gives each layer its level; "
            "take Sparsity(), or Sparsity(level) for the most that a layer may lose"
        )


def share_of(pattern: Pattern) -> Share | None:
    """The share of a pattern of the whole network; None for any other pattern."""
    if isinstance(pattern, Sparsity) and pattern.scope == "network":
        return Share(level_of(pattern), measured=True)
    return None


def _plain(pattern: Any, pad: Any, **sizes: Any) -> None:
    """Sets sizes as integers of Python; raises MethodError if ``pad`` is no flag."""
    if not flag(pad):
        name = type(pattern).__name__
        raise MethodError(f"{name}(pad={pad!r}): expected True or False")
    for name, size in {**sizes, "pad": bool(pad)}.items():
        object.__setattr__(pattern, name, size)


def _share(name: str, level: float | None) -> None:
    if level is None:
        return
    if not number(level) or not 0 <= level <= 1:
        raise MethodError(
            f"{name}({level!r}): expected a share in [0, 1], such as {name}(0.9) for "
            "90 % zeros"
        )
