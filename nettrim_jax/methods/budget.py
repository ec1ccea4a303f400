"""The requests of methods to the whole network: a budget, a share, all at once.

Knows numbers; knows no network.
"""

import dataclasses
from collections.abc import Callable, Hashable
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
      asker: the name of the method, for messages.
    """

    measure: str
    most: float
    metric: Metric | None
    asker: str = dataclasses.field(default="NetTrim", compare=False)


@dataclasses.dataclass(frozen=True)
class Share:
    """One number of weights for all layers that are given the same method.

    Attributes:
      level: the share of zeros among all their weights.
      measured: whether the network is measured to split the number; otherwise the
        weights of all layers are compared by the method's score.
    """

    level: float
    measured: bool


@dataclasses.dataclass(frozen=True)
class Whole:
    """Whole units of the network, which a method chooses for all layers.

    Attributes:
      asker: the name of the method, for messages.
    """

    asker: str


@dataclasses.dataclass(frozen=True)
class Together:
    """The weights of all layers at once, which one method prunes.

    Attributes:
      asker: the name of the method, for messages.
      same: what all layers' methods have to agree in.
      most: the largest number of weights.
    """

    asker: str
    same: Hashable
    most: int


def budget_of(
    asker: str, deviation: Any, drop: Any, metric: Metric | None
) -> Budget | None:
    """The budget of a method with these attributes; None if there is none."""
    if deviation is None and drop is None:
        return None
    name, value = ("drop", drop) if deviation is None else ("deviation", deviation)
    _check_number(asker, name, value)
    return Budget(name, float(value), metric, asker)


def check_budget(asker: str, deviation: Any, drop: Any, metric: Any) -> None:
    """Raises MethodError if these attributes of a method do not go together."""
    if deviation is None and drop is None:
        if metric is not None:
            raise MethodError(
                f"{asker}(metric): goes with drop, the amount by which it may fall"
            )
        return
    if deviation is not None and drop is not None:
        raise MethodError(
            f"{asker}: deviation and drop are given; expected one of them, as what the "
            "whole network may lose"
        )
    for name, value in (("deviation", deviation), ("drop", drop)):
        if value is not None:
            _check_number(asker, name, value)
    if (drop is not None) != (metric is not None):
        raise MethodError(
            f"{asker}: drop and metric go together: the amount by which "
            "metric(params, batch) may fall; for a deviation there is no metric"
        )
    if metric is not None and not callable(metric):
        raise MethodError(
            f"{asker}(metric={metric!r}): expected a function "
            "metric(params, batch) that gives a number, larger is better"
        )


def is_plain(*values: Any) -> bool:
    """Whether all are plain values or None, as when JAX does not make the record."""
    return all(
        value is None or isinstance(value, int | float | str) for value in values
    )


def _check_number(asker: str, name: str, value: Any) -> None:
    """Raises MethodError unless the value is a concrete, finite, positive number."""
    if not real(value) or np.shape(value) != ():
        raise MethodError(f"{asker}({name}={value!r}): expected a number such as 0.02")
    if isinstance(value, jax.core.Tracer):
        raise MethodError(
            f"{asker}({name}): its value is being traced; a search chooses among "
            "networks, so it needs concrete values and does not work within jax.jit, "
            "jax.vmap or jax.grad"
        )
    if not (np.isfinite(value) and value > 0):
        raise MethodError(f"{asker}({name}={value}): expected a finite number above 0")
