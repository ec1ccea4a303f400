"""The requests of methods to the whole network: a budget, or a share.

Knows numbers; knows no network.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.core
import numpy as np

from nettrim_jax._values import real
from nettrim_jax.results import MethodError

Metric = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the network may lose.

    Attributes:
      measure: ``"deviation"`` of the output, or ``"drop"`` of the metric.
      most: the largest ``measure`` that is allowed.
      metric: for a drop, the user's function of params and batch; otherwise None.
    """

    measure: str
    most: float
    metric: Metric | None


@dataclasses.dataclass(frozen=True)
class Share:
    """One number of weights for all layers that are given the same method.

    Attributes:
      level: the share of zeros among all their weights.
      measured: whether the network is measured to split the number; otherwise the
        weights of all layers are compared by their magnitude.
    """

    level: float
    measured: bool


def check_number(name: str, value: Any) -> None:
    """Raises MethodError unless the value is a concrete, finite, positive number."""
    if not real(value) or np.shape(value) != ():
        raise MethodError(f"NetTrim({name}={value!r}): expected a number such as 0.02")
    if isinstance(value, jax.core.Tracer):
        raise MethodError(
            f"NetTrim({name}): its value is being traced; a search chooses among "
            "networks, so it needs concrete values and does not work within jax.jit, "
            "jax.vmap or jax.grad"
        )
    if not (np.isfinite(value) and value > 0):
        raise MethodError(f"NetTrim({name}={value}): expected a finite number above 0")
