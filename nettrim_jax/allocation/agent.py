"""The groups of a network, one after the other, by agents that try and learn.

Each agent measures the network without what it would remove, beside what the groups
before have lost. Where JAX can trace the metric, all that an agent does is one program.

Knows groups, the agent and the user's metric; knows no solver.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import _sharding
from nettrim_jax._numerics import by_turns
from nettrim_jax.allocation.evaluation import number_of
from nettrim_jax.allocation.sides import steps_of
from nettrim_jax.calibration.splits import concrete
from nettrim_jax.execution.batching import at_once
from nettrim_jax.methods import tryandlearn
from nettrim_jax.methods.around import places
from nettrim_jax.methods.budget import Metric
from nettrim_jax.methods.tryandlearn import Sizes, TryAndLearn
from nettrim_jax.structure.cutting import Place, entries_of, places_of, zeroed
from nettrim_jax.structure.records import Entry, Group, Structure
from nettrim_jax.typing import Array, Batch, Params

ASKER = "TryAndLearn"
MEMORY = 2**31  # bytes that the samples of a step may take together
Fill = Callable[[Sequence[Array]], Params]


def choose(
    method: TryAndLearn,
    leaves: Sequence[Array],
    structure: Structure,
    batch: Batch,
    fill: Fill,
) -> dict[str, np.ndarray]:
    """The units that the agents of a network do without.

    Groups are gone through in order, and each is measured without what was removed of
    those before. Each may lose an equal part of what is left of the bound.

    Args:
      method: the metric, the bound, and how the agents learn.
      leaves: the arrays of the params.
      structure: the groups, as :func:`nettrim_jax.units` finds them.
      batch: the second argument of the metric.
      fill: makes params of arrays; equal ones share compilations.

    Returns:
      By the name of each group that loses some, the units to remove, ``[k]``, or
      ``[*steps, k]`` where every step of a loop has its own; as the argument ``remove``
      of :func:`nettrim_jax.shrink`.

    Raises:
      MethodError: the metric gives no finite number, or a value is being traced.
    """
    concrete((leaves, batch), ASKER, "give shrink the units to remove")
    leaves, groups = list(leaves), structure.groups
    called = _Called(method.metric, fill)
    trained = value = number_of(called(leaves, batch), ASKER)
    out = {}
    for position, group in enumerate(groups):
        fallen = trained - value
        share = (method.bound - fallen) / (len(groups) - position)
        trial = _Trial(called, group, leaves, batch)
        if not trial.places:  # nothing of it can be zero
            continue
        keep, scores = trial.learned(method, position, value, share)
        most = min(fallen + share, method.bound)
        keep, value = trial.held(keep, scores, value, trained=trained, most=most)
        if keep.all():
            continue
        leaves = trial.without(keep)
        gone = np.stack([np.flatnonzero(~row) for row in keep])
        out[group.name] = gone.reshape(*group.steps, -1)
    return out


@dataclasses.dataclass(frozen=True)
class _Called:
    """The metric as a function of arrays; equal ones are compiled once."""

    metric: Metric
    fill: Fill

    def __call__(self, leaves: Sequence[Array], batch: Batch) -> Any:
        with _sharding.users():
            return self.metric(self.fill(leaves), batch)


class _Given(NamedTuple):
    """The arrays that a program measures choices with."""

    leaves: list[Array]
    batch: Batch
    units: list[Any]  # at each place, the unit of every index
    value: Any  # [], the metric before


@dataclasses.dataclass(frozen=True)
class _Falls:
    """By how much choices make the metric fall; equal ones are compiled once."""

    called: _Called
    places: tuple[Place, ...]
    chunk: int  # choices that are measured together

    def __call__(self, given: _Given, keep: Array) -> Array:
        places = list(zip(self.places, given.units, strict=True))

        def fall(keep: Array) -> Array:
            value = self.called(zeroed(given.leaves, places, keep), given.batch)
            return given.value - jnp.asarray(value, jnp.float32)

        if self.chunk == 1:
            return jax.lax.map(fall, keep)
        return by_turns(lambda at: jax.vmap(fall)(keep[at]), len(keep), self.chunk)


class _Trial:
    """One group of a network, to be tried.

    Args:
      called: the metric.
      group: the group.
      leaves: the arrays of the params, without what was removed before.
      batch: the second argument of the metric.
    """

    def __init__(
        self, called: _Called, group: Group, leaves: list[Array], batch: Batch
    ):
        self.called, self.group, self.leaves, self.batch = called, group, leaves, batch
        self.places = places_of(group, leaves)

    def without(self, keep: np.ndarray) -> list[Array]:
        """The leaves with zeros where units do not stay."""
        return zeroed(self.leaves, self.places, keep)

    def value(self, keep: np.ndarray) -> float:
        """The metric of a choice, ``[s, k]``."""
        return float(self.called(self.without(keep), self.batch))

    def learned(
        self, method: TryAndLearn, position: int, value: float, share: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The choice of the group's agent, and the odds of all units, ``[s, k]``."""
        # of an accuracy all may be lost, and yet some units cost nothing
        room = max(share, 1e-6 * method.bound)
        settings = tryandlearn.settings_of(method, position, room)
        sizes = Sizes(method.samples, method.width)
        filters: Any = filters_of(self.group, self.leaves)
        if _is_traceable(self.called, self.leaves, self.batch):
            places = tuple(place for place, _ in self.places)
            units = [units for _, units in self.places]
            falls = _Falls(self.called, places, self._chunk())
            given = _Given(self.leaves, self.batch, units, np.float32(value))
            best, scores = tryandlearn.learned(falls, given, filters, settings, sizes)
        else:

            def outside(keep: np.ndarray) -> Any:
                return np.float32(value) - np.array(
                    [self.value(k) for k in keep], np.float32
                )

            best, scores = tryandlearn.learned_outside(
                outside, filters, settings, sizes
            )
        return np.asarray(best.keep), np.asarray(scores)

    def _chunk(self) -> int:
        """The number of choices to measure together."""
        terms = sum(np.size(a) for a in jax.tree.leaves((self.leaves, self.batch)))
        changed = {place.leaf for place, _ in self.places}
        return at_once(terms, sum(self.leaves[k].nbytes for k in changed), MEMORY)

    def held(
        self,
        keep: np.ndarray,
        scores: np.ndarray,
        value: float,
        *,
        trained: float,
        most: float,
    ) -> tuple[np.ndarray, float]:
        """A choice, or as much of it as is within the bound when it is measured again.

        Programs round differently. Units come back in the order of their odds.
        """
        order = np.argsort(np.where(keep, np.inf, -scores), axis=1, kind="stable")
        bad, good, found = -1, int((~keep[0]).sum()), value  # numbers that come back
        while good - bad > 1:
            count = 0 if bad < 0 else (bad + good) // 2
            measured = self.value(_with(keep, order[:, :count]))
            if trained - measured <= most:
                good, found = count, measured
            else:
                bad = count
        return _with(keep, order[:, :good]), found


def _with(keep: np.ndarray, units: np.ndarray) -> np.ndarray:
    """A choice, ``[s, k]``, with some units more, ``[s, m]``."""
    keep = keep.copy()
    np.put_along_axis(keep, units, True, axis=1)
    return keep


def _is_traceable(called: _Called, leaves: Sequence[Array], batch: Batch) -> bool:
    """Whether JAX can trace the metric, to a real number, and remember that it did."""
    try:
        hash(called)
        out = jax.eval_shape(called, leaves, batch)
        return out.shape == () and not jnp.issubdtype(out.dtype, jnp.complexfloating)
    except Exception:  # whatever it is, the metric itself has run
        return False


def filters_of(group: Group, leaves: Sequence[Array]) -> np.ndarray:
    """What an agent sees of units: their incoming weights, standardised, ``[s, k, d]``.

    Of each column the mean over units is zero and the mean square one.
    """
    own = entries_of(group, leaves)
    made = [entry for entry in own if entry.path in group.producers]
    columns = [_columns(entry, group, leaves) for entry in made or own]
    filters = np.concatenate(columns, axis=-1)
    filters = filters - filters.mean((0, 1))
    size = np.sqrt((filters**2).mean((0, 1)))
    return (filters / np.where(size > 0, size, 1)).astype(np.float32)


def _columns(entry: Entry, group: Group, leaves: Sequence[Array]) -> np.ndarray:
    """The weights of each unit at one place, ``[s, k, ...]``, with zeros at the end."""
    assert entry.leaf is not None
    leaf, steps = np.asarray(leaves[entry.leaf]), len(group.steps)
    s, at = steps_of(group), places(entry.units, group.count)
    weights = np.moveaxis(leaf, entry.axis, steps).astype(np.float64)
    weights = np.nan_to_num(weights, posinf=0, neginf=0)
    weights = weights.reshape(s, len(entry.units), -1)
    out = np.where((at >= 0)[..., None], weights[:, at], 0)  # [s, most, k, ...]
    return out.swapaxes(1, 2).reshape(s, group.count, -1)
