"""``TryAndLearn``: agents that learn by trial which units a network can do without.

For each group of units an agent takes some steps, as one program where JAX can trace
what measures its choices. What they lose is measured by the caller.

Knows policies and arrays; knows no network.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.core
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax._compile import compiled
from nettrim_jax._trees import STATIC
from nettrim_jax._values import number, whole
from nettrim_jax.methods.base import Chooser
from nettrim_jax.methods.budget import Metric
from nettrim_jax.methods.policy import (
    Learner,
    Measured,
    Tried,
    learn,
    odds,
    propose,
    start,
)
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array

LAST = 2  # steps at the end that try the likeliest units, so many of them


def _setting(default: float) -> Any:
    return dataclasses.field(default=default, kw_only=True, metadata=STATIC)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TryAndLearn(Chooser):
    r"""Removes the units that an agent learns to do without, within a bound.

    For each group of units, such as the neurons of a layer, an agent tries choices
    :math:`A` of the units that stay, and learns to make those with the highest reward

    .. math::
        R(A) = \min\Big(\frac{b - (p - p(A))}{b},\, 1\Big)
        \cdot \log \frac{N}{|A|} .

    The first factor is the accuracy term: :math:`p` is the metric before, and
    :math:`p(A)` that of the network with zeros in the place of the other units. It is
    negative where the metric falls by more than the bound :math:`b`. The second is the
    efficiency term, for :math:`N` units of which :math:`|A|` stay. The agent is a
    policy :math:`\pi_\theta(A \mid W)`: a network of two layers makes of each unit's
    incoming weights the probability that it stays. It learns by the policy gradient of
    several samples a step,

    .. math::
        \nabla_\theta\, \mathbb{E}\, R \approx \frac1m \sum_i (R(A_i) - \beta_i)\,
        \nabla_\theta \log \pi_\theta(A_i \mid W),

    where the baseline :math:`\beta_i` is the mean reward of the other samples. Of all
    choices that were measured, the one with the fewest units within the bound is taken;
    the last ones are the units that are likeliest to stay, in several numbers. If none
    is within, nothing is removed. (Huang, Zhou, You and Neumann, 2018.)

    The bound holds for the whole network. Groups are gone through in order, and each
    may lose an equal part of what those before have left of it. Here nothing is
    retrained in between, as it is in the paper.

    Attributes:
      metric: a function ``metric(params, batch)`` that gives one number, the larger the
        better, such as the share of right answers. It need not have a derivative. If
        JAX can trace it, all steps of a group are one program; else it is called for
        each sample. The bound is kept on the data of this metric; on other data the
        network may lose more.
      bound: by how much the metric of the network may fall, in its own units.
      steps: number of steps that the agent of each group learns.
      samples: number of choices that it tries at each step.
      width: width of the policy's hidden layer.
      rate: step size of its optimiser.
      seed: an integer in [0, 2**32); the same seed makes the same choice.

    Raises:
      MethodError: the metric is no function, or a number is out of its range.

    Example:
      >>> import nettrim_jax as nt
      >>> accuracy = lambda params, batch: (batch[0] @ params["w"] > 0).mean()
      >>> nt.TryAndLearn(accuracy, 0.01).bound
      0.01
    """

    metric: Metric = dataclasses.field(metadata=STATIC)
    bound: float = dataclasses.field(metadata=STATIC)
    steps: int = _setting(300)
    samples: int = _setting(16)
    width: int = _setting(32)
    rate: float = _setting(0.01)
    seed: int = _setting(0)

    bias: ClassVar[str] = "fixed"
    refit: ClassVar[bool] = False

    def __post_init__(self):
        if not callable(self.metric):
            raise MethodError(
                f"TryAndLearn(metric={self.metric!r}): expected a function "
                "metric(params, batch) that gives one number, the larger the better"
            )
        for name in ("bound", "rate"):
            value = getattr(self, name)
            if isinstance(value, jax.core.Tracer):
                raise MethodError(
                    f"TryAndLearn({name}): its value is being traced; an agent chooses "
                    "among networks, so give a number"
                )
            if not number(value) or not 0 < value < np.inf:
                raise MethodError(
                    f"TryAndLearn({name}={value!r}): expected a finite number above 0"
                )
        for name, least in (("steps", 1), ("samples", 2), ("width", 1)):
            value = getattr(self, name)
            if not whole(value) or value < least:
                raise MethodError(
                    f"TryAndLearn({name}={value!r}): expected an integer of at least "
                    f"{least}"
                )
        if not whole(self.seed) or not 0 <= self.seed < 2**32:
            raise MethodError(
                f"TryAndLearn(seed={self.seed!r}): expected an integer in [0, 2**32)"
            )

    def choose(self, units: Any) -> dict[str, np.ndarray]:
        """The units to remove by the names of groups."""
        return units.learned(self)


class Settings(NamedTuple):
    """What may vary from call to call; arrays of NumPy."""

    seed: Any  # [2], with the position of the group
    room: Any  # [], by how much the metric may fall
    rate: Any  # []
    last: Any  # [steps] bool, as for ``propose``


def settings_of(method: TryAndLearn, position: int, room: float) -> Settings:
    """The settings of the agent of one group."""
    return Settings(
        seed=np.array([method.seed, position], np.uint32),
        room=np.float32(room),
        rate=np.float32(method.rate),
        last=np.arange(method.steps + LAST) >= method.steps,
    )


class Sizes(NamedTuple):
    """What is static of an agent; hashable."""

    samples: int
    width: int


def _start(filters: Array, seed: Array, width: int) -> Learner:
    key = jax.random.fold_in(jax.random.key(seed[0]), seed[1])
    return start(filters, key, width)


@compiled(static_argnames=("falls", "sizes"), often=True)
def learned(
    falls: Callable[[Any, Array], Array],
    given: Any,
    filters: Array,
    settings: Settings,
    sizes: Sizes,
) -> tuple[Tried, Array]:
    """All steps of an agent as one program.

    Args:
      falls: a hashable function of ``given`` and choices ``[m, s, k]`` that JAX can
        trace, by how much each makes the metric fall, ``[m]``.
      given: arrays.
      filters: ``[s, k, d]``.
      settings: what may vary.
      sizes: what is static.

    Returns:
      The best choice, and the logarithms of the odds that units stay, ``[s, k]``.
    """

    def step(learner: Learner, last: Array) -> tuple[Learner, None]:
        learner, actions, keep = propose(learner, filters, last, sizes.samples)
        seen = Measured(actions, Tried(keep, falls(given, keep)), last)
        return learn(learner, filters, seen, settings.room, settings.rate), None

    learner = _start(filters, settings.seed, sizes.width)
    learner, _ = jax.lax.scan(step, learner, settings.last)
    return learner.best, odds(learner.policy, filters)


_started = compiled(static_argnames="width")(_start)
_proposed = compiled(static_argnames="samples")(propose)
_taught = compiled()(learn)
_odds = compiled()(odds)


def learned_outside(
    falls: Callable[[np.ndarray], Array],
    filters: Any,
    settings: Settings,
    sizes: Sizes,
) -> tuple[Tried, Array]:
    """The same by a function that JAX cannot trace, of choices as NumPy's arrays."""
    learner = _started(filters, settings.seed, width=sizes.width)
    for last in settings.last:
        learner, actions, keep = _proposed(
            learner, filters, last, samples=sizes.samples
        )
        seen = Measured(actions, Tried(keep, falls(np.asarray(keep))), last)
        learner = _taught(learner, filters, seen, settings.room, settings.rate)
    return learner.best, _odds(learner.policy, filters)
