"""Measures networks on some rows, compared with the trained network.

Knows the network and budgets; knows no solver.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from nettrim_jax import _sharding
from nettrim_jax.allocation import budget as budgets
from nettrim_jax.allocation.budget import Reading
from nettrim_jax.calibration.batches import Part, Source
from nettrim_jax.calibration.batches import parts as parts_of
from nettrim_jax.calibration.outputs import moved
from nettrim_jax.methods.budget import Budget
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array, Batch

Leaves = list[Array]
NETWORK = "scope='network'"


class Meter:
    """Measures networks on some rows, compared with the trained network.

    Args:
      budget: the budget; None for the deviation of the output, without a limit.
      parts: the rows with the traced network; each part is a fold.
      batches: the same rows as batches.
      share: ratio of these rows to the rows that a bound is for.
      asker: the setting that asks for it, where there is no budget.
    """

    def __init__(
        self,
        budget: Budget | None,
        parts: Sequence[Part],
        batches: Sequence[Batch],
        share: float = 1.0,
        asker: str = NETWORK,
    ):
        self.parts, self.batches = parts, batches
        self.budget = budget or Budget("deviation", math.inf, None)
        self.model, self.share = parts[0].model, share
        self.trained = self.outputs(self.model.leaves)
        floats = [a for part in self.trained for a in part if _floating(a)]
        lost = any(np.isnan(a).any() for a in floats)
        if not self.budget.metric and (lost or not any(np.any(a) for a in floats)):
            asked = f"{self.budget.asker}(deviation={self.budget.most:g})"
            other = ", or use drop= and metric=" if budget else ""
            what = "hold NaN" if lost else "are zero or not floating"
            raise MethodError(
                f"{asked if budget else asker}: the trained network's outputs "
                f"{what} on the rows to measure, so no change is "
                f"relative to them; let apply_fn return logits{other}"
            )
        self.before = self._metrics(self.model.leaves) if self.budget.metric else []

    def outputs(self, leaves: Leaves) -> list[list[Array]]:
        """The outputs of a network, per fold."""
        return [part.outputs(leaves) for part in self.parts]

    def read(self, leaves: Leaves) -> Reading:
        """The reading of a network, compared with the trained one."""
        return read([self], [leaves], self.share)

    def each(self, leaves: Leaves) -> tuple[list[float], list[float]]:
        """Per fold, what the budget compares: metrics, or squared outputs."""
        if self.budget.metric:
            return self.before, self._metrics(leaves)
        return self._moved(leaves, self.trained)

    def cost(self, leaves: Leaves, beside: list[list[Array]]) -> float:
        """Squared distance from other outputs, relative to the trained ones."""
        off, size = (sum(part) for part in self._moved(leaves, beside))
        if not off:
            return 0.0
        return off / size if size else float("inf")

    def _moved(
        self, leaves: Leaves, beside: list[list[Array]]
    ) -> tuple[list[float], list[float]]:
        each = [
            moved(old, part.outputs(leaves), trained)
            for part, old, trained in zip(self.parts, beside, self.trained, strict=True)
        ]
        return [float(off) for off, _ in each], [float(size) for _, size in each]

    def _metrics(self, leaves: Leaves) -> list[float]:
        params, metric = self.model.fill(leaves), self.budget.metric
        assert metric is not None
        asker = self.budget.asker
        with _sharding.users():
            return [number_of(metric(params, batch), asker) for batch in self.batches]


def read(meters: Sequence[Meter], networks: Sequence[Leaves], share: float) -> Reading:
    """One reading of several networks, each on the rows of its meter.

    Args:
      meters: the meters, with one budget.
      networks: the leaves of one network per meter.
      share: ratio of the rows of all meters to the rows that a bound is for.
    """
    pairs = [m.each(leaves) for m, leaves in zip(meters, networks, strict=True)]
    first, second = (sum(lists, []) for lists in zip(*pairs, strict=True))
    measure = budgets.drop if meters[0].budget.metric else budgets.deviation
    return measure(first, second, share)


def meter_on(
    source: Source,
    budget: Budget | None = None,
    share: float = 1.0,
    asker: str = NETWORK,
) -> Meter:
    """A meter on a list of batches, with all other arguments as of :class:`Meter`."""
    rows = list(parts_of(source._replace(batch=iter(source.batch))))
    return Meter(budget, rows, source.batch, share, asker)


def _floating(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.floating)


def number_of(value: Any, asker: str) -> float:
    """A value of the user's metric as a finite number, or MethodError."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = None
    if number is None or not np.isfinite(number):
        raise MethodError(
            f"{asker}(metric): expected a finite number from metric(params, batch), "
            f"got {value!r}; larger is better, for example a share of right answers"
        )
    return number
