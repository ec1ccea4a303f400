"""The units that a method chooses: what it is told of them, and a network without them.

Knows groups of units, activations and the orders; knows no particular criterion.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from nettrim_jax.allocation import agent
from nettrim_jax.allocation.finished import Finished
from nettrim_jax.allocation.sides import Side, sides_of, steps_of
from nettrim_jax.calibration import gates
from nettrim_jax.calibration.batches import Part
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.calibration.gradient import Loss
from nettrim_jax.calibration.statistics import Statistic
from nettrim_jax.execution import layer, orders
from nettrim_jax.execution.options import Options
from nettrim_jax.execution.orders import Methods
from nettrim_jax.methods.around import Around, Maker, Reader
from nettrim_jax.methods.base import Choosing, Method
from nettrim_jax.methods.refit import Refit
from nettrim_jax.methods.units import Hold
from nettrim_jax.results import MethodError
from nettrim_jax.structure.cutting import chosen, places_of, rows_of, zeroed
from nettrim_jax.structure.groups import structure_of
from nettrim_jax.structure.marking import multiply_adds_left, parameters_left
from nettrim_jax.structure.program import followed, traced
from nettrim_jax.structure.records import Group
from nettrim_jax.tracing import entries


def follow(
    method: Choosing, parts: Sequence[Part], asked: Methods, options: Options
) -> Finished:
    """Prunes whole units of a network.

    Args:
      method: chooses them.
      parts: all batches.
      asked: the sites whose units may go, by position.
      options: how to prune.

    Raises:
      MethodError: none of these sites makes units that can be removed.
    """
    options.show(0, "units")
    found = Found(parts, asked, options)
    removed = chosen(found.structure, method.choose(found))
    old = parts[0].model.leaves
    whole = [np.ones(leaf.shape, bool) for leaf in old]
    keeps = list(map(np.asarray, found.without(removed, whole)))
    new = found.without(removed, old)
    reports, masks = {}, {}
    methods = _fits(found, keeps, options, refit=method.refit)
    if methods:
        # what is zero, and may not come back, is not in the support
        free = options._replace(revive=True, within=None)
        came = orders.run(parts, methods, free)
        # the fit may give a unit without weights a bias
        new = found.without(removed, came.leaves)
        reports = {k: outcome.report for k, outcome in came.outcomes.items()}
        masks = {k: outcome.mask for k, outcome in came.outcomes.items()}
    notes = tuple(
        f"{group.name}: {removed[group.name].shape[-1]} of {group.count} "
        f"{group.kind}s removed"
        for group in found.chosen
        if group.name in removed
    )
    notes += tuple(
        f"{name}: stays, no layer that can be pruned makes its units or reads them"
        for name in found.alone
    )
    kept = entries.beside(keeps, old)
    extra = {"notes": (*notes, *parts[0].network.notes)}
    return Finished(new, masks, reports, orders.moved(parts[0], new), extra, kept)


def _fits(
    found: "Found", keeps: Sequence[np.ndarray], options: Options, *, refit: bool
) -> dict[int, Method]:
    """The method of each site of which something is removed."""
    first, out = found.first, {}
    for k, site in enumerate(first.network.sites):
        keep = keeps[site.leaf].ravel()[site.index]
        if keep.all():
            continue
        weights = entries.weights_of(site, first.model.leaves)
        within = None
        if options.within is not None:
            within = entries.of(options.within[site.leaf], site.index)
        free = layer.allowed(weights, within, site.layers, options.revive)
        support: Any = keep if free is None else keep & np.asarray(free)
        out[k] = Refit(support) if refit else Hold(support)
    return out


class _Watch(NamedTuple):
    """Stands for a method where layers are only looked at."""

    statistics: tuple[Statistic, ...]


class Found:
    """What a method may ask of the units of a network.

    Args:
      parts: all batches.
      asked: the sites whose units may go.
      options: how to prune.

    Attributes:
      first: the first batch with its network.
      structure: the groups.
      alone: the names of those that no layer is beside, as of a product of two leaves.
      chosen: those that may lose units.

    Raises:
      MethodError: there are none.
    """

    sizes: ClassVar[Mapping[str, Any]] = {
        "parameters": parameters_left,
        "multiply-adds": multiply_adds_left,
    }

    def __init__(self, parts: Sequence[Part], asked: Methods, options: Options):
        self.first, self._parts, self._options = parts[0], parts, options
        model = self.first.model
        program = traced(model.apply_fn, model.params, self.first.given)
        self._walked = followed(program)
        self.structure = structure_of(self._walked)
        shapes = [tuple(leaf.shape) for leaf in model.leaves]
        sites = self.first.network.sites
        self._sides = {
            group.name: sides_of(group, sites, shapes.__getitem__)
            for group in self.structure.groups
        }
        self.alone = [name for name, sides in self._sides.items() if not sides]
        self.chosen = [g for g in self.structure.groups if self._may(g, asked)]
        if not self.chosen:
            reasons = [
                f"{r.path}[{r.axis}]: {r.reason}" for r in self.structure.refused
            ]
            raise MethodError(
                "method: none of the layers makes units that can be removed ("
                + "; ".join(reasons[:6])
                + "); nettrim_jax.units lists the groups, and what stays"
            )
        self._seen: dict[tuple[Statistic, ...], dict[int, Activation]] = {}
        self._slopes: dict[int, dict[str, np.ndarray]] = {}

    def without(
        self, removed: Mapping[str, np.ndarray], leaves: Sequence[Any]
    ) -> list[Any]:
        """Leaves with zeros in the place of some units; counters and keys stay."""
        out = list(leaves)
        for name, units in removed.items():
            group = self.structure[name]
            keep = np.stack(
                [~np.isin(np.arange(group.count), row) for row in rows_of(units)]
            )
            places = places_of(group, self.first.model.leaves)
            out = zeroed(out, places, keep)
        return out

    def learned(self, method: Any) -> dict[str, np.ndarray]:
        """The units that the agents of all groups do without."""
        if len(self._parts) > 1:
            raise MethodError(
                f"{method.shared.asker}: its metric is measured on one batch, got a "
                f"loader of {len(self._parts)}; give one batch"
            )
        model = self.first.model
        mine = dataclasses.replace(self.structure, groups=tuple(self.chosen))
        return agent.choose(method, model.leaves, mine, self.first.given, model.filler)

    @property
    def groups(self) -> list[tuple[str, int, tuple[int, ...]]]:
        """The name, the number of units and the steps of each group."""
        return [(g.name, g.count, g.steps) for g in self.chosen]

    def around(
        self, name: str, statistics: tuple[Statistic, ...], loss: Loss | None
    ) -> list[Around]:
        """What surrounds the units of a group, at each step."""
        group, seen = self.structure[name], self._observed(statistics)
        slopes = None if loss is None else self._sloped(loss)[name]
        makers: list[list[Maker]] = [[] for _ in range(steps_of(group))]
        readers: list[list[Reader]] = [[] for _ in range(steps_of(group))]
        for side in self._sides[name]:
            one = seen[side.site]
            W = self._weights(side.site)
            valid, X, P = (np.asarray(a) for a in (one.valid, one.X, one.P))
            stats = {k: np.asarray(a, np.float64) for k, a in one.stats.items()}
            moments, feels = stats.get("moments"), stats.get("sensitivity")
            bias = int(self.first.network.sites[side.site].bias is not None)
            for lane in np.flatnonzero(side.step >= 0):
                unit, step, rows = side.unit[lane], side.step[lane], valid[lane]
                count = 1.0 if moments is None else max(moments[lane, -1, -1], 1.0)
                felt = None if feels is None else feels[lane] / count
                if side.makes:
                    makers[step].append(Maker(unit, W[lane], P[lane, rows], felt))
                    continue
                mean, size = None, len(unit) + bias
                if moments is not None:
                    mean = moments[lane, :size, :size] / count
                readers[step].append(Reader(unit, W[lane], X[lane, rows], mean, felt))
        return [
            Around(
                name if len(makers) == 1 else f"{name}, step {step}",
                group.count,
                tuple(makers[step]),
                tuple(readers[step]),
                None if slopes is None else slopes[:, step],
            )
            for step in range(len(makers))
        ]

    def size(self, of: str, removed: Mapping[str, np.ndarray]) -> int:
        """The size of the network without some units."""
        if of == "units":
            full = sum(g.count * steps_of(g) for g in self.chosen)
            return int(full - sum(units.size for units in removed.values()))
        given = {
            name: units.reshape(*self.structure[name].steps, units.shape[-1])
            for name, units in removed.items()
        }
        return self.sizes[of](self._walked, self.structure, given)

    def _may(self, group: Group, asked: Methods) -> bool:
        """Whether a layer that makes the units was asked for, or else one around."""
        sides = self._sides[group.name]
        makers = [side for side in sides if side.makes]
        return any(side.site in asked for side in makers or sides)

    def _weights(self, k: int) -> np.ndarray:
        first = self.first
        site = first.network.sites[k]
        weights = entries.read(entries.weights_of(site, first.model.leaves))
        return np.asarray(weights, np.float64)

    def _observed(self, statistics: tuple[Statistic, ...]) -> dict[int, Activation]:
        """The activations of all layers around the groups."""
        if statistics not in self._seen:
            around = {s.site for g in self.chosen for s in self._sides[g.name]}
            watch: Any = _Watch(statistics)
            asked = {k: watch for k in sorted(around)}
            seen = orders.observe(self._parts, asked, self._options)
            self._seen[statistics] = dict(zip(asked, seen.activations, strict=True))
        return self._seen[statistics]

    def _sloped(self, loss: Loss) -> dict[str, np.ndarray]:
        """The derivatives of a loss by group, ``[samples, steps, count]``."""
        if id(loss) not in self._slopes:
            maps: dict[int, np.ndarray] = {}
            starts = []
            total = 0
            for group in self.chosen:
                starts.append(total)
                sides = self._sides[group.name]
                for side in [s for s in sides if not s.makes] or sides:
                    self._gate(maps, side, total + group.count * side.step)
                total += group.count * steps_of(group)
            each = [gates.slopes(loss, part, maps, total) for part in self._parts]
            every = np.concatenate(each)
            self._slopes[id(loss)] = {
                group.name: every[
                    :, start : start + group.count * steps_of(group)
                ].reshape(len(every), steps_of(group), group.count)
                for group, start in zip(self.chosen, starts, strict=True)
            }
        return self._slopes[id(loss)]

    def _gate(self, maps: dict[int, np.ndarray], side: Side, start: np.ndarray) -> None:
        """Marks the entries of a side with the numbers of their factors."""
        site = self.first.network.sites[side.site]
        shape = self.first.model.leaves[site.leaf].shape
        mine = maps.setdefault(site.leaf, np.full(shape, -1, np.int32))
        factor = np.where(side.unit >= 0, start[:, None] + side.unit, -1)
        factor = factor[:, None, :] if side.makes else factor[:, :, None]
        factor = np.broadcast_to(factor, site.index.shape)
        flat = mine.reshape(-1)  # a view
        some = factor >= 0
        flat[site.index[some]] = factor[some]
