"""What a search among networks measured, and what its budget keeps for unseen rows.

Knows numbers; knows no network.
"""

import dataclasses

from jax.tree_util import register_dataclass

from nettrim_jax._trees import STATIC
from nettrim_jax.typing import Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SearchStep:
    """One network that the search for a budget measured, on the rows that steer.

    Attributes:
      epsilons: the epsilons of all sites that have a part of the budget, ``[sites]``;
        zero if as trained, NaN under a pattern.
      nonzeros: number of weights left in these sites.
      value: deviation of the output, or drop of the metric.
      bound: the value plus a margin for unseen rows, which has to meet the budget.
      left: number of weights left in each of these sites, ``[sites]``.
    """

    epsilons: Array
    nonzeros: Array
    value: Array
    bound: Array
    left: Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Split:
    """How one number of weights was split among layers, by measuring networks.

    The chosen network was solved on half of the rows; the one in the report has the
    same numbers of weights and was solved on all.

    Attributes:
      deviation: relative change of its output on rows that no solve and no choice used.
      equal: the same with an equal share in every layer. If that is less, the layers
        have equal shares.
      tried: number of networks measured.
    """

    deviation: Array
    equal: Array
    tried: int = dataclasses.field(metadata=STATIC)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Margin:
    """What a budget keeps for rows that were not seen, and what decides it.

    As many rows as those that check exceed the value on the rows that steer by more
    than the margin one time in a hundred.

    Attributes:
      size: the margin, in the units of the budget: the bound of the last network of
        ``report.search`` less its value.
      halved: about the number of rows of a batch with which it would be half; NaN
        where the rows that steer do not differ, so that there is no margin.
      steering: number of rows that steer.
      given: number of rows of the batch, or of a loader's batches together.
      unit: ``"rows"``, or ``"batches"`` of a loader where rows cannot be counted.
    """

    size: Array
    halved: Array
    steering: int = dataclasses.field(metadata=STATIC)
    given: int = dataclasses.field(metadata=STATIC)
    unit: str = dataclasses.field(default="rows", metadata=STATIC)
