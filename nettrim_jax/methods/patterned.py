"""The base of all methods with a pattern: its number of weights, given or searched.

Knows patterns and what is asked of the whole network; knows no network.
"""

import dataclasses
from typing import Any, ClassVar, Self

from nettrim_jax._trees import STATIC
from nettrim_jax.methods.base import LayerKind
from nettrim_jax.methods.budget import (
    Budget,
    Metric,
    Share,
    budget_of,
    check_budget,
    is_plain,
)
from nettrim_jax.methods.counts import Count, counted
from nettrim_jax.methods.patterns import (
    Pattern,
    at_level,
    check_level,
    is_pattern,
    share_of,
)
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array, ArrayLike

MOST, LEAST = 2.0**7, 2.0**-7  # odds of a zero, for shares of 99.2 and 0.8 %


@dataclasses.dataclass(frozen=True)
class Patterned:
    """The base of the methods with a pattern.

    With ``deviation`` or ``drop`` the level of the pattern is that of a search: each
    layer loses as many weights as the whole network allows. The level that is given is
    then the most that a layer may lose.

    Attributes:
      pattern: the pattern of the weights that may be left.
      deviation: the largest relative change of the network's output, as for
        :class:`nettrim_jax.NetTrim`.
      drop: the largest fall of ``metric``, in its own units.
      metric: a function ``metric(params, batch)``, the larger the better.
    """

    pattern: Pattern
    deviation: ArrayLike | None = dataclasses.field(default=None, kw_only=True)
    drop: ArrayLike | None = dataclasses.field(default=None, kw_only=True)
    metric: Metric | None = dataclasses.field(
        default=None, kw_only=True, metadata=STATIC
    )

    # the output moves at most in proportion to this power of the odds
    power: ClassVar[int] = 2
    # whether it is of use without a pattern, as a criterion of units
    chooses_units: ClassVar[bool] = False

    def __post_init__(self):
        # also runs when JAX rebuilds the record, with values of any type as leaves
        name = type(self).__name__
        if not is_pattern(self.pattern) and not self._bare:
            raise MethodError(
                f"{name}({self.pattern!r}): expected a pattern, such as "
                f"{name}(nettrim_jax.Sparsity(0.9))"
            )
        if is_plain(self.deviation, self.drop):
            check_budget(name, self.deviation, self.drop, self.metric)

    @property
    def _bare(self) -> bool:
        """Whether it has no pattern and needs none."""
        return self.chooses_units and self.pattern is None

    def check(self) -> None:
        """Raises MethodError if an attribute is not valid."""
        name = type(self).__name__
        if self._bare:
            raise MethodError(
                f"{name}: has no pattern, so it can only rank units, as in "
                f"Units(0.5, by={name}(...)); to prune weights give a pattern, such as "
                f"{name}(nettrim_jax.Sparsity(0.9), ...)"
            )
        check_budget(name, self.deviation, self.drop, self.metric)
        check_level(self.pattern, name, budget=self._budget() is not None)

    @property
    def shared(self) -> Budget | Share | None:
        """The budget, or the pattern's :class:`Share`; None if neither is given."""
        return self._budget() or share_of(self.pattern)

    def _budget(self) -> Budget | None:
        name = type(self).__name__
        return budget_of(name, self.deviation, self.drop, self.metric)

    def counted(self, left: Array, shape: tuple[int, ...]) -> Self:
        """The same method for one layer, which keeps ``left`` weights."""
        return dataclasses.replace(self, pattern=Count(left=left, shape=shape))

    @property
    def alternatives(self) -> tuple[Self]:
        """The ways to prune a layer among which a search may choose: this one."""
        return (self,)

    def strengths(self, tol: float) -> tuple[float, float]:
        """The largest and the least odds of a zero that a search may try."""
        level: float | None = getattr(self.pattern, "level", None)
        if level is None or level >= MOST / (1 + MOST):
            return MOST, LEAST
        return level / (1 - level), LEAST

    def allotted(self, strength: float, kind: LayerKind) -> Self:
        """The same method for one layer, with these odds of a zero."""
        pattern: Any = at_level(self.pattern, strength / (1 + strength))
        return dataclasses.replace(
            self,
            pattern=counted(pattern, kind.shape, kind.layers),
            deviation=None,
            drop=None,
            metric=None,
        )

    def fitted(self, kind: LayerKind) -> Pattern:
        """The pattern with its counts; raises MethodError if it does not fit.

        Where a search chooses the level there are no counts yet.
        """
        self.pattern.check(kind.shape)
        if self._budget() is not None:
            return self.pattern
        return counted(self.pattern, kind.shape, kind.layers)
