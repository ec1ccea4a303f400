"""``Sparsest``: for each layer, what leaves fewest weights within a network's budget.

Knows methods; knows no network.
"""

import dataclasses
from typing import Any, ClassVar, NoReturn

from jax.tree_util import register_dataclass

from nettrim_jax._trees import STATIC
from nettrim_jax.calibration.statistics import Statistic
from nettrim_jax.methods.base import Budgeted, LayerKind, Unsolved
from nettrim_jax.methods.budget import (
    Budget,
    Metric,
    budget_of,
    check_budget,
    is_plain,
)
from nettrim_jax.methods.nettrim import NetTrim
from nettrim_jax.methods.patterns import Sparsity
from nettrim_jax.methods.reconstruct import Reconstruct
from nettrim_jax.results import MethodError
from nettrim_jax.typing import ArrayLike


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Sparsest(Unsolved):
    """The better of an exact pattern and a convex program, within a network's budget.

    A search solves each layer by ``Reconstruct(Sparsity())`` at falling levels and by
    ``NetTrim(refit=True)`` at falling epsilons, and takes for each layer that with
    which the fewest weights are left in all. ``prune(..., deviation=0.02)`` means this
    method. The exact pattern often removes more where a layer has few rows. The convex
    program has a certificate, and ``report.sites`` an epsilon where it was taken.

    Attributes:
      deviation: the largest relative change of the network's output, as for
        :class:`nettrim_jax.NetTrim`.
      drop: the same as the largest fall of ``metric``, in its own units.
      metric: a function ``metric(params, batch)``, the larger the better.
      alternatives: the two methods of one layer; ``prune`` sets them.

    Raises:
      MethodError: an attribute is out of its range, or no budget is given.

    Example:
      >>> import nettrim_jax as nt
      >>> nt.Sparsest(deviation=0.02).shared.most
      0.02
    """

    deviation: ArrayLike | None = None
    drop: ArrayLike | None = None
    metric: Metric | None = dataclasses.field(default=None, metadata=STATIC)
    alternatives: tuple[Budgeted, ...] = ()

    bias: ClassVar[str] = "free"
    power: ClassVar[int] = 2

    def __post_init__(self):
        # also runs when JAX rebuilds the record, with values of any type as leaves
        if is_plain(self.deviation, self.drop):
            check_budget("Sparsest", self.deviation, self.drop, self.metric)

    def check(self) -> None:
        """Raises MethodError if an attribute is not valid."""
        check_budget("Sparsest", self.deviation, self.drop, self.metric)
        if self.deviation is None and self.drop is None:
            raise MethodError(
                "Sparsest(): expected what the network may lose, such as "
                "Sparsest(deviation=0.02)"
            )

    @property
    def shared(self) -> Budget | None:
        """The budget of the whole network."""
        return budget_of("Sparsest", self.deviation, self.drop, self.metric)

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """What either of the two asks for."""
        asked = [one for way in self.alternatives for one in way.statistics]
        return tuple(dict.fromkeys(asked))

    def bind(self, kind: LayerKind, cascade: bool) -> "Sparsest":
        """With the two methods of one layer; raises MethodError if they do not fit."""
        asked = {"deviation": self.deviation, "drop": self.drop, "metric": self.metric}
        ways: Any = Reconstruct(Sparsity(), **asked), NetTrim(refit=True, **asked)
        bound = tuple(way.bind(kind, cascade) for way in ways)
        return dataclasses.replace(self, alternatives=bound)

    def strengths(self, tol: float) -> NoReturn:
        """Is never called: each of the two has a range of its own."""
        raise NotImplementedError

    def allotted(self, strength: float, kind: LayerKind) -> NoReturn:
        """Is never called: each of the two is given its strength."""
        raise NotImplementedError
