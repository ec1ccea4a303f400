"""One number of weights for several layers: how many each of them keeps.

By magnitude their weights are compared at once. For other methods every layer is solved
for several numbers and measured on rows that steer, ``splitting`` chooses, and what it
chose is checked against the same share for all. Knows sites, the solver and splitting.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nettrim_jax import results
from nettrim_jax.allocation import curves as splitting
from nettrim_jax.allocation.evaluation import NETWORK, Leaves, Meter
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.execution.engine import Settings, prune_sites
from nettrim_jax.methods.nettrim import Method
from nettrim_jax.methods.patterns import Count, Sparsity
from nettrim_jax.methods.rules import Magnitude
from nettrim_jax.report import Split
from nettrim_jax.results import MethodError
from nettrim_jax.tracing import answers
from nettrim_jax.tracing.answers import Answer
from nettrim_jax.tracing.entries import Entries, read
from nettrim_jax.tracing.sites import Graph, Site
from nettrim_jax.typing import Array, wide

ROUNDS = 3  # of measuring again around what was chosen, all layers pruned
GAIN = 0.98  # of the squared deviation, below which a round is worth another one
NEAR = 2.6  # how far from there, as a ratio of weights

Unit = tuple[int, int]  # a site and one of its layers, which a loop's steps are
Counts = dict[Unit, int]


def level(method: Any) -> float | None:
    """The share of zeros that all layers with this method have; None if each its own.

    A method may be a bare pattern.
    """
    pattern = getattr(method, "pattern", method)
    if isinstance(pattern, Sparsity) and pattern.scope == "network":
        return pattern.level
    return None


def searches(methods: Iterable[Any]) -> bool:
    """Whether any of the methods wants the network measured.

    Raises:
      MethodError: another one wants that for itself.
    """
    given = list(methods)
    mine = [m for m in given if _searches(m)]
    for other in given:
        if mine and getattr(other, "budget", None) is not None:
            raise MethodError(
                f"method: {mine[0]!r} and a NetTrim with deviation or drop each search "
                "for the network that suits them; expected one search. Give NetTrim an "
                "epsilon, or the pattern scope='layer'"
            )
    return bool(mine)


def _searches(method: Any) -> bool:
    return level(method) is not None and not isinstance(method, Magnitude)


def by_magnitude(
    graph: Graph, asked: Mapping[int, Method], old: Leaves
) -> dict[int, Method]:
    """The methods, with a number per layer where magnitudes are compared at once."""
    counts: dict[Unit, Any] = {}
    for method, sites in _groups(asked):
        if not isinstance(method, Magnitude):
            continue
        sizes = [_weights(graph.sites[k], old) for k in sites]
        dtype = functools.reduce(jnp.promote_types, (a.dtype for a in sizes))
        flat = jnp.concatenate([jnp.ravel(a).astype(dtype) for a in sizes])
        kept = Sparsity(_level(method)).keep(flat[None, :, None])[0, :, 0]
        start = 0
        for k in sites:
            for unit, size in _sizes(graph, k).items():
                part = kept[start : start + size]
                counts[unit] = jnp.sum(part, dtype=jnp.int32)
                start += size
    return counted(graph, asked, counts)


def counted(
    graph: Graph, asked: Mapping[int, Method], counts: Mapping[Unit, Any]
) -> dict[int, Method]:
    """The methods, with these numbers of weights for their layers."""
    out = dict(asked)
    for k in {k for k, _ in counts}:
        units, (lanes, *sizes) = _sizes(graph, k), graph.sites[k].index.shape
        left = jnp.stack([jnp.asarray(counts[unit], jnp.int32) for unit in units])
        pattern = Count(left=left, shape=(lanes // len(units), *sizes))
        out[k] = dataclasses.replace(asked[k], pattern=pattern)
    return out


def search(
    graph: Graph,
    asked: Mapping[int, Method],
    seen: Sequence[Activation],
    old: Leaves,
    settings: Settings,
    steer: Meter,
    check: Meter,
) -> tuple[dict[int, Method], Split]:
    """Chooses how many weights each layer keeps, by what the network's output moves.

    Args:
      graph: the network's layers.
      asked: the sites' methods; those without a shared number are pruned first.
      seen: what each of them saw.
      old: the trained leaves.
      settings: how to solve.
      steer: measures on the rows to choose by.
      check: measures on other rows.

    Returns:
      The methods with a number per layer, and what was measured.
    """
    job = _Search(graph, asked, seen, old, settings, steer)
    for i in range(max(len(group.grid) for group in job.groups)):
        settings.show(0, f"level {i + 1}")
        job.solve(job.level(i))
    best, even = job.split(None), job.even()
    job.solve(best)
    for _ in range(ROUNDS):
        if not math.isfinite(job.cost(best)):
            break
        settings.show(0, "finer")
        last, found = job.cost(best), job.split(best)
        job.solve(found)
        best = min(best, found, key=job.cost)
        if job.cost(best) > GAIN * last:
            break
    moved = [
        check.cost(job.leaves(counts), check.trained)
        if math.isfinite(job.cost(counts))
        else math.inf
        for counts in (best, even)
    ]
    moved = [m if math.isfinite(m) else math.inf for m in moved]
    if not moved[0] < moved[1]:
        best = even
    ours, equal = (jnp.asarray(math.sqrt(m), jnp.float32) for m in moved)
    return counted(graph, asked, best), Split(ours, equal, job.tried)


class _Group(NamedTuple):
    """Layers that share a number of weights."""

    units: list[Unit]
    sizes: list[int]
    total: int  # weights that they keep
    grid: list[float]  # shares to measure at, the asked one among them
    asked: float


class _Search:
    """The answers so far, and the networks made of them."""

    def __init__(
        self,
        graph: Graph,
        asked: Mapping[int, Method],
        seen: Sequence[Activation],
        old: Leaves,
        settings: Settings,
        meter: Meter,
    ):
        self.graph, self.old, self.meter = graph, old, meter
        self.asked, self.tried = asked, 0
        self.settings = settings._replace(show=lambda done, what: None)
        self.seen = dict(zip(asked, seen, strict=True))
        shared = {k: m for k, m in asked.items() if _searches(m)}
        self.groups = [
            _group(graph, _level(method), sites) for method, sites in _groups(shared)
        ]
        self.base = list(old)
        fixed = {k: m for k, m in asked.items() if k not in shared}
        rows = [self.seen[k] for k in fixed]
        prune_sites(graph, fixed, rows, old, self.base, settings, fed=False)
        self.beside = meter.outputs(self.base) if fixed else meter.trained
        self.costs: dict[tuple[int, ...], float] = {}
        self.answers: dict[Unit, dict[int, Answer]] = {}
        for k in shared:
            self._keep(k, self.base, {u: n for u, n in _sizes(graph, k).items()})

    def even(self) -> Counts:
        """The same share in every layer."""
        return {
            unit: n
            for group in self.groups
            for unit, n in zip(
                group.units, splitting.evenly(group.sizes, group.total), strict=True
            )
        }

    def level(self, at: int) -> Counts:
        """The same share in every layer, at one point of the grid."""
        counts = self.even()
        for group in self.groups:
            share = group.grid[min(at, len(group.grid) - 1)]
            if share != group.asked:
                counts |= {
                    unit: min(max(round(share * size), 1), size)
                    for unit, size in zip(group.units, group.sizes, strict=True)
                }
        return counts

    def solve(self, counts: Counts) -> None:
        """Solves the layers that have no answer yet with these numbers."""
        missing = {u[0] for u, n in counts.items() if n not in self.answers[u]}
        some = {unit: n for unit, n in counts.items() if unit[0] in missing}
        methods = counted(self.graph, self.asked, some)
        mine = {k: methods[k] for k in self.asked if k in missing}
        new = list(self.base)
        entries = prune_sites(
            self.graph,
            mine,
            [self.seen[k] for k in mine],
            self.old,
            new,
            self.settings,
            fed=False,
        )
        for k, entry in entries.items():
            if int(entry.result) in results.GOOD:
                self._keep(k, new, {u: n for u, n in some.items() if u[0] == k})

    def _keep(self, k: int, leaves: Leaves, counts: Counts) -> None:
        """Takes the answers of one site's layers out of leaves."""
        moves = self.asked[k].bias != "fixed"
        values, bias = answers.take(self.graph.sites[k], leaves, moves)
        lanes = len(values) // len(counts)
        for i, (unit, n) in enumerate(counts.items()):
            mine = slice(i * lanes, (i + 1) * lanes)
            answer = Answer(values[mine], None if bias is None else bias[mine])
            # at its full size a layer is as trained
            self.answers.setdefault(unit, {}).setdefault(n, answer)

    def leaves(self, counts: Counts) -> Leaves:
        """The network with these numbers of weights, all of which have answers."""
        new = list(self.base)
        for k in dict.fromkeys(k for k, _ in counts):
            self._put(new, k, counts)
        return new

    def _put(self, leaves: Leaves, k: int, counts: Counts) -> None:
        parts = [self.answers[u][n] for u, n in counts.items() if u[0] == k]
        moved = [part.bias for part in parts if part.bias is not None]
        bias = jnp.concatenate(moved) if moved else None
        values = jnp.concatenate([part.values for part in parts])
        answers.put(self.graph.sites[k], leaves, Answer(values, bias))

    def cost(self, counts: Counts) -> float:
        """Squared deviation of the network with these numbers; all have been solved."""
        if any(n not in self.answers[unit] for unit, n in counts.items()):
            return math.inf
        return self._cost(tuple(counts.values()), self.leaves(counts))

    def _cost(self, name: tuple[int, ...], leaves: Leaves) -> float:
        if name not in self.costs:
            cost = self.meter.cost(leaves, self.beside)
            self.costs[name] = cost if math.isfinite(cost) else math.inf
            self.tried += 1
        return self.costs[name]

    def split(self, around: Counts | None) -> Counts:
        """The best numbers by what each layer alone does to a network.

        That network is the trained one, or the one with other numbers, near which the
        new ones then are.
        """
        full = {
            u: n for g in self.groups for u, n in zip(g.units, g.sizes, strict=True)
        }
        start = full if around is None else around
        whole, counts = self.leaves(start), self.even()
        for group in self.groups:
            curves = [self._curve(u, start, whole, around) for u in group.units]
            least, most = (sum(curve[i][0] for curve in curves) for i in (0, -1))
            # too few solves went well: the same share for all stays
            if least <= group.total <= most:
                found = splitting.split(curves, group.total)
                counts |= dict(zip(group.units, found, strict=True))
        return counts

    def _curve(
        self, unit: Unit, start: Counts, whole: Leaves, around: Counts | None
    ) -> list[tuple[int, float]]:
        curve = []
        for n in sorted(self.answers[unit]):
            if around and not 1 / NEAR <= n / max(around[unit], 1) <= NEAR:
                continue
            leaves, counts = list(whole), start | {unit: n}
            self._put(leaves, unit[0], counts)
            cost = self._cost(tuple(counts.values()), leaves)
            if math.isfinite(cost):
                curve.append((n, cost))
        return curve or [(start[unit], math.inf)]


def _group(graph: Graph, level: float, sites: Sequence[int]) -> _Group:
    sizes = {u: n for k in sites for u, n in _sizes(graph, k).items()}
    whole = sum(sizes.values())
    total = whole - round(level * whole)
    grid = splitting.densities(1 - level) if 0 < level < 1 else [1 - level]
    return _Group(list(sizes), list(sizes.values()), total, grid, 1 - level)


def _groups(asked: Mapping[int, Method]) -> list[tuple[Method, list[int]]]:
    """Sites that share a number of weights, with their method."""
    out: list[tuple[Method, list[int]]] = []
    for k, method in asked.items():
        if level(method) is None:
            continue
        same = next((sites for m, sites in out if m == method), None)
        if same is None:
            out.append((method, [k]))
        else:
            same.append(k)
    return out


def _level(method: Any) -> float:
    share = level(method)
    assert share is not None, f"{method!r} has no {NETWORK}"
    return share


def _sizes(graph: Graph, k: int) -> Counts:
    """The layers of a site and how many weights each has."""
    site = graph.sites[k]
    return {(k, i): site.index.size // site.layers for i in range(site.layers)}


def _weights(site: Site, old: Leaves) -> Array:
    values = read(Entries(old[site.leaf], jnp.asarray(np.asarray(site.index))))
    return jnp.abs(values.astype(wide(values.dtype)))
