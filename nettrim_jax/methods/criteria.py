"""Criteria: which units of a group matter least, by the rules of the literature.

A criterion gives every unit a score; those of the lowest scores are removed. Penalties
score, too: by their value of the weights that make a unit.

Knows what surrounds units; knows no network.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from nettrim_jax.calibration.gradient import Loss
from nettrim_jax.calibration.statistics import Statistic
from nettrim_jax.methods.around import Around, places, totals


@runtime_checkable
class Criterion(Protocol):
    """Which units matter, a frozen record.

    Beside scores it may have ``choose(around, count)``, which returns the units to
    remove together, and ``path(around)``: all units but one in the order in which they
    go, and what each adds to a loss that is comparable between groups.
    """

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """The statistics of the layers around that it asks for beside rows."""
        ...

    @property
    def loss(self) -> Loss | None:
        """The loss whose derivatives by units it asks for."""
        ...

    def scores(self, around: Around) -> np.ndarray:
        """How much each unit matters, ``[count]``."""
        ...


@dataclasses.dataclass(frozen=True)
class _Scores:
    """The base of criteria that need rows or weights alone."""

    statistics: ClassVar[tuple[Statistic, ...]] = ()
    loss: ClassVar[None] = None


@dataclasses.dataclass(frozen=True)
class L2(_Scores):
    """Units by the Euclidean norm of the weights that make them.

    (Li, Kadav, Durdanovic, Samet and Graf, 2017, compare it with the sum of magnitudes,
    which is ``by=nettrim_jax.L1()``.)

    Example:
      >>> import nettrim_jax as nt
      >>> nt.Units(0.5, by=nt.L2()).by
      L2()
    """

    def scores(self, around: Around) -> np.ndarray:
        """The norms."""
        return np.sqrt(_by_maker(around, lambda W: np.sum(W**2, axis=0)))


@dataclasses.dataclass(frozen=True)
class Norm(_Scores):
    """Units by a penalty of the weights that make them.

    Attributes:
      penalty: a penalty, such as :class:`nettrim_jax.L1`.
    """

    penalty: Any

    def scores(self, around: Around) -> np.ndarray:
        """The penalty of every unit's weights."""

        def value(W: np.ndarray) -> np.ndarray:
            columns = W.astype(np.float32).T[:, :, None]
            each = [float(self.penalty.value(column)) for column in columns]
            return np.array(each)

        return _by_maker(around, value)


@dataclasses.dataclass(frozen=True)
class MeanActivation(_Scores):
    """Units by the mean of their activations, as the layers behind them read it.

    (Molchanov, Tyree, Karras, Aila and Kautz, 2017, sec. 2.2.)

    Example:
      >>> import nettrim_jax as nt
      >>> nt.Units(0.5, by=nt.MeanActivation()).by
      MeanActivation()
    """

    def scores(self, around: Around) -> np.ndarray:
        """The means."""
        return _mean(around, lambda a: a)


@dataclasses.dataclass(frozen=True)
class NonZeros(_Scores):
    """Units by the number of their activations that are not zero, per sample.

    Unlike :class:`APoZ` it counts, so that a channel with more places counts for more
    where groups are compared.

    Example:
      >>> import nettrim_jax as nt
      >>> nt.Units(0.5, by=nt.NonZeros()).by
      NonZeros()
    """

    def scores(self, around: Around) -> np.ndarray:
        """The counts, over the inputs of a row that are the unit's."""
        return _mean(around, lambda a: a != 0, count=True)


@dataclasses.dataclass(frozen=True)
class APoZ(_Scores):
    """Units by the average percentage of zeros among their activations.

    Those with the most zeros go first. With ``Units(deviations=1)`` units are removed
    whose share of zeros is more than one standard deviation above the mean of their
    layer. (Hu, Peng, Tai and Tang, 2016, eq. 1 and sec. 3.2.)

    Example:
      >>> import nettrim_jax as nt
      >>> nt.Units(deviations=1, by=nt.APoZ()).by
      APoZ()
    """

    def scores(self, around: Around) -> np.ndarray:
        """The share of zeros, with a minus, since a high one is removed."""
        return -_mean(around, lambda a: a == 0)


def criterion_of(by: Any) -> Any:
    """The criterion that a user means; None if it is none."""
    if isinstance(by, type):
        return None
    if isinstance(by, Criterion):
        return by
    return Norm(by) if callable(getattr(by, "value", None)) else None


def lowest(by: Any, around: Around, count: int) -> np.ndarray:
    """The units to remove, ``[count]``, in ascending order."""
    if hasattr(by, "choose"):
        return by.choose(around, count)
    return np.sort(np.argsort(by.scores(around), kind="stable")[:count])


def path(by: Any, around: Around) -> tuple[np.ndarray, np.ndarray]:
    """All units but one in the order in which they go, and what each adds.

    Scores of different groups are compared after they are divided by their norm, as
    Molchanov et al. (2017, sec. 2.2) do.
    """
    if hasattr(by, "path"):
        return by.path(around)
    scores = by.scores(around)
    order = np.argsort(scores, kind="stable")[:-1]
    size = np.linalg.norm(scores)
    return order, scores[order] / (size if size > 0 else 1)


def _by_maker(
    around: Around, function: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The sum over the makers of a function of the weights of each response.

    Units that no layer makes, such as those of a state, are judged by their readers.
    """
    out = np.zeros(around.count)
    for one in around.makers:
        out += totals(function(one.W), one.unit, around.count)
    if not around.makers:
        for one in around.readers:
            out += totals(function(one.W.T), one.unit, around.count)
    return out


def _mean(
    around: Around,
    function: Callable[[np.ndarray], np.ndarray],
    *,
    count: bool = False,
) -> np.ndarray:
    """The mean of a function of the activations of each unit, over rows and readers.

    Args:
      around: the units.
      function: of an array of activations.
      count: whether to sum over the inputs of a row that are the unit's.
    """
    given = [(one.X, one.unit) for one in around.readers]
    if not given:  # no layer sums over them
        given = [(one.P, one.unit) for one in around.makers]
    out = np.zeros(around.count)
    for X, unit in given:
        where = places(unit, around.count)
        each = np.asarray(np.mean(function(X), axis=0, dtype=np.float64))
        sums = np.sum(np.where(where >= 0, each[where], 0), axis=0)
        many = 1 if count else np.maximum((where >= 0).sum(0), 1)
        out += sums / many
    return out / max(len(given), 1)
