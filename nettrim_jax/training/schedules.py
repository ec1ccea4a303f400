"""Schedules: which weights of a layer are left after each step of a training.

Knows arrays and patterns; knows no optimiser and no network.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax._trees import STATIC
from nettrim_jax._values import number
from nettrim_jax.methods.base import each_layer
from nettrim_jax.methods.counts import leaving, number_left
from nettrim_jax.results import MethodError
from nettrim_jax.training.schedule import (
    SCORES,
    Chosen,
    Patterned,
    Seen,
    ascending,
    each,
    integers,
    keep,
    kept,
    one_of,
    scores,
)
from nettrim_jax.typing import Array

GROWTH = ("gradient", "random")
FIRST = np.float32(1e20)  # of what stays anyway; a sum of many is still a number


@dataclasses.dataclass(frozen=True)
class _Falling(Patterned):
    """Weights go in some steps, and none comes back."""

    by: str = dataclasses.field(default="magnitude", metadata=STATIC, kw_only=True)

    @property
    def moves(self) -> bool:
        """Whether it asks for ``movement``."""
        return self.by == "movement"

    def _levels(self) -> np.ndarray:
        """The share of zeros after each event."""
        raise NotImplementedError

    def _event(self, step: Array) -> Array:
        """The number of the event of a step in which one is due."""
        raise NotImplementedError

    def choose(self, step: Array, seen: Seen) -> Chosen:
        """The highest scores of those that are on."""
        pattern = self.at(self._levels(), self._event(step), seen.W)
        return Chosen(keep(pattern, scores(self.by, seen), seen.mask))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Gradual(_Falling):
    r"""The share of zeros grows from nothing to that of a pattern, ever more slowly.

    .. math:: s_t = s \left(1 - \left(1 - \frac{t - t_0}{t_1 - t_0}\right)^3\right)

    (Zhu and Gupta, 2017, eq. 1.) After step :math:`t` exactly ``round(s_t * size)``
    weights of a layer are zero (of ``NM(n, m)``, as many of each ``m``), and what went
    does not come back.

    Attributes:
      pattern: what is left in the end.
      start: :math:`t_0`, the number of steps before any weight goes.
      end: :math:`t_1`, the step after which the pattern is reached.
      every: so many steps lie between two choices.
      by: which weights stay. ``"magnitude"``: the largest. ``"gradient"``: those with
        the largest :math:`|w g|`, by the gradient of the step. ``"movement"``: those
        that moved away from zero most, by the sum of :math:`-w g` over all steps (Sanh,
        Wolf and Rush, 2020), which takes one more array in the optimiser's state. Where
        a gradient is not a number, a layer goes by magnitude.

    Raises:
      MethodError: an attribute is out of its range.

    Example:
      >>> import nettrim_jax as nt
      >>> nt.Gradual(nt.NM(2, 4), end=600, every=10).level_after(300)
      0.4375
    """

    end: int = dataclasses.field(metadata=STATIC, kw_only=True)
    start: int = dataclasses.field(default=0, metadata=STATIC, kw_only=True)
    every: int = dataclasses.field(default=100, metadata=STATIC, kw_only=True)

    def __post_init__(self):
        integers(self, least={"start": 0, "end": 1, "every": 1})
        if self.end <= self.start:
            raise MethodError(
                f"Gradual(start={self.start}, end={self.end}): expected an end after "
                "the start"
            )
        one_of(self, "by", SCORES)
        self.require()

    def level_after(self, step: int) -> float:
        """The share of zeros after so many steps, a number of Python."""
        if step < self.start:
            return 0.0
        last = self.end if step >= self.end else step - (step - self.start) % self.every
        return float(self.level * self._share(np.asarray(last)))

    def _share(self, step: np.ndarray) -> np.ndarray:
        return 1 - (1 - (step - self.start) / (self.end - self.start)) ** 3

    def _levels(self) -> np.ndarray:
        steps = np.arange(self.start, self.end, self.every)
        return self.level * self._share(np.append(steps, self.end))

    def _event(self, step: Array) -> Array:
        # rounded up: the last event may follow sooner than the others
        return -((self.start - step) // self.every)

    def due(self, step: Array) -> Array:
        """Whether the mask is chosen anew in this step, counted from one."""
        regular = (step - self.start) % self.every == 0
        inside = (step >= self.start) & (step <= self.end)
        return inside & (regular | (step == self.end))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Rounds(_Falling):
    r"""Rounds of removing weights and training on (Han, Pool, Tran and Dally, 2015).

    Each round removes the same share of what is left: after round :math:`r` of
    :math:`R`, of a pattern with the share :math:`s` of zeros, exactly
    ``round(s_r * size)`` weights of a layer are zero, with
    :math:`s_r = 1 - (1 - s)^{r / R}`. What went does not come back.

    Attributes:
      pattern: what is left in the end.
      starts: after how many steps each round begins, in ascending order; 0 is the first
        step.
      by: which weights stay, as for :class:`Gradual`.

    Raises:
      MethodError: an attribute is out of its range.

    Example:
      >>> import nettrim_jax as nt
      >>> rounds = nt.Rounds(nt.Sparsity(0.99), starts=(0, 1000))
      >>> [round(rounds.level_after(step), 2) for step in (1, 1000)]
      [0.9, 0.99]
    """

    starts: tuple[int, ...] = dataclasses.field(metadata=STATIC, kw_only=True)

    def __post_init__(self):
        object.__setattr__(self, "starts", ascending("Rounds(starts=", self.starts))
        one_of(self, "by", SCORES)
        self.require()

    def level_after(self, step: int) -> float:
        """The share of zeros after so many steps, a number of Python."""
        rounds = int(np.sum(self._steps() <= step))
        return float(self._levels()[rounds - 1]) if rounds else 0.0

    def _steps(self) -> np.ndarray:
        return np.maximum(self.starts, 1).astype(np.int32)

    def _levels(self) -> np.ndarray:
        share = np.arange(1, len(self.starts) + 1) / len(self.starts)
        return np.append(1 - (1 - self.level) ** share[:-1], self.level)

    def _event(self, step: Array) -> Array:
        return jnp.sum(self._steps() <= step, dtype=jnp.int32) - 1

    def due(self, step: Array) -> Array:
        """Whether the mask is chosen anew in this step, counted from one."""
        return jnp.any(self._steps() == step)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseSparseDense(Patterned):
    """Dense, then within a pattern, then dense again (Han et al., 2017).

    The weights of the sparse phase are those of the largest magnitude. Those that come
    back start from zero, with fresh moments.

    Attributes:
      pattern: what is left in the sparse phase; one of the user's own, too.
      sparse: after how many steps the sparse phase begins, and after which it ends; 0
        is the first step.

    Raises:
      MethodError: an attribute is out of its range.

    Example:
      >>> import nettrim_jax as nt
      >>> nt.DenseSparseDense(nt.Sparsity(0.5), sparse=(1000, 2000)).sparse
      (1000, 2000)
    """

    sparse: tuple[int, int] = dataclasses.field(metadata=STATIC, kw_only=True)

    def __post_init__(self):
        sparse = ascending("DenseSparseDense(sparse=", self.sparse)
        if len(sparse) != 2 or sparse[1] < 2:
            raise MethodError(
                f"DenseSparseDense(sparse={self.sparse!r}): expected two numbers of "
                "steps, such as (1000, 2000)"
            )
        object.__setattr__(self, "sparse", sparse)
        self.require(counts=False)

    def due(self, step: Array) -> Array:
        """Whether the mask is chosen anew in this step, counted from one."""
        return (step == max(self.sparse[0], 1)) | (step == self.sparse[1])

    def choose(self, step: Array, seen: Seen) -> Chosen:
        """The largest weights, or all of them."""
        pattern = self.of(seen.W.shape[1:], len(seen.W))
        within = keep(pattern, seen.W**2, seen.mask)
        return Chosen(within | (step >= self.sparse[1]))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Regrow(Patterned):
    r"""Sparse from the first step; some weights go, and as many others come.

    In each update the smallest weights go, a share :math:`\alpha_t` of those that are
    on, and as many come that were off:

    .. math:: \alpha_t = \frac{\alpha}{2} \left(1 + \cos \frac{\pi t}{T}\right)

    RigL (Evci, Gale, Menick, Castro and Elsen, 2020) takes those with the largest
    gradients, SET (Mocanu et al., 2018) random ones. What comes starts from zero, with
    fresh moments; what goes cannot come back in the same update. The number of weights
    is the same after each step. Where fewer weights are off than would go, fewer go.

    The first mask is that of the largest weights among the given params, so zeros of a
    network that was pruned before stay; it is in ``optimizer.init(params)``, and the
    weights are zero from the first step on.

    Attributes:
      pattern: what is left, at each step.
      every: so many steps lie between two updates.
      end: :math:`T`, the step of the last update.
      share: :math:`\alpha`, in (0, 1].
      by: ``"gradient"`` (RigL) or ``"random"`` (SET).

    Raises:
      MethodError: an attribute is out of its range.

    Example:
      >>> import nettrim_jax as nt
      >>> nt.Regrow(nt.Sparsity(0.9), every=100, end=4000).share
      0.3
    """

    end: int = dataclasses.field(metadata=STATIC, kw_only=True)
    every: int = dataclasses.field(default=100, metadata=STATIC, kw_only=True)
    share: float = dataclasses.field(default=0.3, metadata=STATIC, kw_only=True)
    by: str = dataclasses.field(default="gradient", metadata=STATIC, kw_only=True)

    def __post_init__(self):
        integers(self, least={"end": 1, "every": 1})
        if not number(self.share) or not 0 < self.share <= 1:
            raise MethodError(
                f"Regrow(share={self.share!r}): expected a share in (0, 1], such as 0.3"
            )
        one_of(self, "by", GROWTH)
        self.require()

    def first(self, W: Array) -> Array | None:
        """The largest weights."""
        return each_layer(kept, (self.of(W.shape[1:], len(W)), W**2))

    def due(self, step: Array) -> Array:
        """Whether the mask is chosen anew in this step, counted from one."""
        return (step % self.every == 0) & (step <= self.end)

    def choose(self, step: Array, seen: Seen) -> Chosen:
        """The largest weights, and others that were off."""
        W, on = seen.W, seen.mask
        pattern = self.of(W.shape[1:], len(W))
        left = np.asarray(number_left(pattern))
        times = np.arange(0, self.end + 1, self.every)
        share = self.share / 2 * (1 + np.cos(np.pi * times / self.end))
        stay = left[0] - np.rint(share * left[0]).astype(np.int32)
        stay = each(stay, step // self.every, len(W))
        size = jnp.abs(seen.gradient)
        if self.by == "random":
            size = jax.random.uniform(seen.key, W.shape, W.dtype)
        known = jnp.isfinite(size).all((1, 2, 3), keepdims=True)
        # without a gradient nothing says what should come
        stay = jnp.where(known[:, 0, 0, 0], stay, left)
        last = keep(leaving(pattern, stay), W**2, on)
        most = jnp.max(size, (1, 2, 3), keepdims=True)
        size = jnp.where(known, size / jnp.where(most > 0, most, 1), 0)
        # behind all that was off, those that would go, the largest first
        rank = jnp.where(on, -1 / (1 + W**2), size**2)
        rank = jnp.where(last, FIRST.astype(rank.dtype), rank)
        return Chosen(each_layer(kept, (pattern, rank)))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Threshold:
    r"""Below a threshold a weight goes; now and then one comes back, small and random.

    The threshold is :math:`\epsilon`, or ``quality`` times the standard deviation of
    all weights of the layer, zeros among them (Han, Pool, Tran and Dally, 2015, sec.
    3.1, for layers without any). How many weights are left follows from the weights.

    Attributes:
      epsilon: the magnitude below which a weight goes; give this or ``quality``.
      quality: the threshold in standard deviations.
      every: so many steps lie between two choices.
      revive: the probability with which a weight that was off comes back in a choice.
      scale: the standard deviation of the normal values with which they come.
      end: the step of the last choice; None for none.

    Raises:
      MethodError: an attribute is out of its range.

    Example:
      >>> import nettrim_jax as nt
      >>> nt.Threshold(quality=0.5, every=100).revive
      0.02
    """

    quality: float | None = dataclasses.field(default=None, metadata=STATIC)
    epsilon: float | None = dataclasses.field(default=None, metadata=STATIC)
    every: int = dataclasses.field(default=100, metadata=STATIC)
    revive: float = dataclasses.field(default=0.02, metadata=STATIC)
    scale: float = dataclasses.field(default=0.01, metadata=STATIC)
    end: int | None = dataclasses.field(default=None, metadata=STATIC)

    shared: ClassVar[bool] = False
    moves: ClassVar[bool] = False

    def __post_init__(self):
        if (self.quality is None) == (self.epsilon is None):
            raise MethodError(
                f"Threshold(quality={self.quality!r}, epsilon={self.epsilon!r}): "
                "expected one of the two, such as Threshold(quality=0.5)"
            )
        integers(self, least={"every": 1})
        if self.end is not None:
            integers(self, least={"end": 1})
        limits = {"quality": math.inf, "epsilon": math.inf, "revive": 1}
        for name, most in {**limits, "scale": math.inf}.items():
            value = getattr(self, name)
            if value is not None and not (number(value) and 0 <= value <= most):
                raise MethodError(
                    f"Threshold({name}={value!r}): expected a number of at least 0"
                    + (" and at most 1" if most == 1 else "")
                )

    @property
    def revives(self) -> bool:
        """Whether weights that come on start from other values than zero."""
        return self.revive > 0

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises MethodError if it does not fit a layer."""

    def first(self, W: Array) -> Array | None:
        """The mask before the first step; None, for all weights are on."""
        return None

    def due(self, step: Array) -> Array:
        """Whether the mask is chosen anew in this step, counted from one."""
        regular = step % self.every == 0
        return regular if self.end is None else regular & (step <= self.end)

    def choose(self, step: Array, seen: Seen) -> Chosen:
        """The weights above the threshold, and some of those that were off."""
        W = seen.W
        limit: Any = self.epsilon
        if self.quality is not None:
            limit = self.quality * jnp.std(W, (1, 2, 3), keepdims=True)
        if not self.revive:
            return Chosen(seen.mask & (jnp.abs(W) >= limit))
        choice, value = jax.random.split(seen.key)
        back = jax.random.bernoulli(choice, self.revive, W.shape) & ~seen.mask
        start = self.scale * jax.random.normal(value, W.shape, W.dtype)
        return Chosen((seen.mask & (jnp.abs(W) >= limit)) | back, start)
