"""Splits one number of weights among the layers that share it.

Where a method scores weights alike in all layers, as by magnitude or by the loss
without them, all are compared at once. For other methods, every layer is solved for
several numbers and measured on the rows that steer. ``curves`` chooses among these, and
the choice is compared with the same share in every layer.
Knows sites, the engine and curves; knows no particular method.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax.numpy as jnp

from nettrim_jax import results
from nettrim_jax.allocation import curves as splitting
from nettrim_jax.allocation.curves import Point
from nettrim_jax.allocation.evaluation import Meter
from nettrim_jax.allocation.search import Leaves, Workshop
from nettrim_jax.calibration import statistics
from nettrim_jax.calibration.batches import Part
from nettrim_jax.execution.options import Options
from nettrim_jax.execution.orders import Methods, Seen
from nettrim_jax.methods.base import Comparing, Method, Sharing
from nettrim_jax.methods.budget import Share
from nettrim_jax.methods.patterns import Sparsity
from nettrim_jax.report import Split
from nettrim_jax.tracing.entries import Values, read, weights_of
from nettrim_jax.tracing.sites import Network, Site
from nettrim_jax.typing import Array, wide

ROUNDS = 3  # largest number of rounds around the choice, with all layers pruned
GAIN = 0.98  # ratio of the squared deviations, below which another round follows
NEAR = 2.6  # largest ratio of the weights to those of the choice

Unit = tuple[int, int]  # a site and one of its layers; each step of a loop is one
Counts = dict[Unit, int]


def looks(asked: Methods) -> bool:
    """Whether weights are compared by what the data say of them."""
    return any(_compared(method) and method.statistics for method in asked.values())


def by_score(parts: Iterable[Part], asked: Methods) -> dict[int, Method]:
    """The methods, with a number for each layer whose weights are compared.

    Args:
      parts: all batches; only the first one if none of the methods asks for statistics.
      asked: the methods by site.
    """
    parts = iter(parts)
    first = next(parts)
    network, old = first.network, first.model.leaves
    mine = {k: m.statistics for k, m in asked.items() if _compared(m)}
    sums = statistics.apart(mine, itertools.chain([first], parts), old)
    counts: dict[Unit, Any] = {}
    for share, sites in _groups(asked):
        if share.measured:
            continue
        sizes = [
            cast(Comparing, asked[k]).score(_weights(network.sites[k], old), sums[k])
            for k in sites
        ]
        dtype = functools.reduce(jnp.promote_types, (a.dtype for a in sizes))
        flat = jnp.concatenate([jnp.ravel(a).astype(dtype) for a in sizes])
        kept = Sparsity(share.level).keep(flat[None, :, None])[0, :, 0]
        start = 0
        for k in sites:
            for unit, size in _sizes(network, k).items():
                part = kept[start : start + size]
                counts[unit] = jnp.sum(part, dtype=jnp.int32)
                start += size
    return counted(network, asked, counts)


def counted(
    network: Network, asked: Methods, counts: Mapping[Unit, Any]
) -> dict[int, Method]:
    """The methods, with these numbers of weights for their layers."""
    out = dict(asked)
    for k in {k for k, _ in counts}:
        units, (lanes, *sizes) = _sizes(network, k), network.sites[k].index.shape
        left = jnp.stack([jnp.asarray(counts[unit], jnp.int32) for unit in units])
        out[k] = cast(Sharing, asked[k]).counted(left, (lanes // len(units), *sizes))
    return out


def search(
    seen: Seen, asked: Methods, options: Options, steer: Meter, check: Meter
) -> tuple[dict[int, Method], Split]:
    """Chooses the number of weights of each layer by the movement of the output.

    Args:
      seen: the layers' activations.
      asked: the sites' methods; sites without a share are pruned first.
      options: how to solve.
      steer: measures on the rows that steer.
      check: measures on other rows.

    Returns:
      The methods with a number for each layer, and the record of the choice.
    """
    job = _Search(seen, asked, options, steer)
    for i in range(max(len(group.grid) for group in job.groups)):
        options.show(0, f"level {i + 1}")
        job.solve(job.level(i))
    best, even = job.split(None), job.even()
    job.solve(best)
    for _ in range(ROUNDS):
        if not math.isfinite(job.cost(best)):
            break
        options.show(0, "finer")
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
    methods = counted(seen.first.network, asked, best)
    return methods, Split(ours, equal, job.tried)


def _compared(method: Method) -> bool:
    return isinstance(method.shared, Share) and not method.shared.measured


class _Group(NamedTuple):
    """Layers that share a number of weights."""

    units: list[Unit]
    sizes: list[int]
    total: int  # number of weights that they keep
    grid: list[float]  # densities to measure at, with the asked one among them
    asked: float


class _Search:
    """The answers so far, by layer and number of weights, and costs of networks."""

    def __init__(self, seen: Seen, asked: Methods, options: Options, meter: Meter):
        shared = [(s, sites) for s, sites in _groups(asked) if s.measured]
        mine = [k for _, sites in shared for k in sites]
        self.shop = Workshop(seen, asked, mine, options, meter)
        self.network, self.asked, self.options = seen.first.network, asked, options
        self.groups = [_group(self.network, s.level, sites) for s, sites in shared]
        self.tried = 0
        self.costs: dict[tuple[int, ...], float] = {}
        self.answers: dict[Unit, dict[int, Values]] = {}
        for k in asked:
            if k in mine:
                self._keep(k, self.shop.base, _sizes(self.network, k))

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
        methods = counted(self.network, self.asked, some)
        mine = {k: methods[k] for k in self.asked if k in missing}
        new, outcomes = self.shop.solve(mine, self.options)
        for k, outcome in outcomes.items():
            if int(outcome.report.result) in results.GOOD:
                self._keep(k, new, {u: n for u, n in some.items() if u[0] == k})

    def _keep(self, k: int, leaves: Leaves, counts: Counts) -> None:
        """Stores the answers of one site's layers from leaves."""
        weights, bias = self.shop.values(k, leaves)
        lanes = len(weights) // len(counts)
        for i, (unit, n) in enumerate(counts.items()):
            mine = slice(i * lanes, (i + 1) * lanes)
            values = Values(weights[mine], None if bias is None else bias[mine])
            # the first answer of a number stays: at full size it is the trained layer
            self.answers.setdefault(unit, {}).setdefault(n, values)

    def leaves(self, counts: Counts) -> Leaves:
        """The leaves with these numbers of weights, all of which have answers."""
        sites = dict.fromkeys(k for k, _ in counts)
        return self.shop.put(self.shop.base, ((k, self._at(k, counts)) for k in sites))

    def _at(self, k: int, counts: Counts) -> Values:
        """The answers of one site's layers, joined."""
        parts = [self.answers[u][n] for u, n in counts.items() if u[0] == k]
        moved = [part.bias for part in parts if part.bias is not None]
        bias = jnp.concatenate(moved) if moved else None
        return Values(jnp.concatenate([part.weights for part in parts]), bias)

    def cost(self, counts: Counts) -> float:
        """Squared deviation with these numbers; infinite if one has no answer."""
        if any(n not in self.answers[unit] for unit, n in counts.items()):
            return math.inf
        return self._cost(tuple(counts.values()), self.leaves(counts))

    def _cost(self, name: tuple[int, ...], leaves: Leaves) -> float:
        if name not in self.costs:
            self.costs[name] = self.shop.cost(leaves)
            self.tried += 1
        return self.costs[name]

    def split(self, around: Counts | None) -> Counts:
        """The best numbers, by the effect of each layer alone on a network.

        The network is the trained one, or that with the numbers ``around``, to which
        the new numbers are then close.
        """
        full = {
            u: n for g in self.groups for u, n in zip(g.units, g.sizes, strict=True)
        }
        start = full if around is None else around
        whole, counts = self.leaves(start), self.even()
        for group in self.groups:
            curves = [self._curve(u, start, whole, around) for u in group.units]
            least, most = (sum(curve[i].nonzeros for curve in curves) for i in (0, -1))
            # otherwise too few solves converged, and the same share for all stays
            if least <= group.total <= most:
                found = splitting.split(curves, group.total)
                counts |= dict(zip(group.units, found, strict=True))
        return counts

    def _curve(
        self, unit: Unit, start: Counts, whole: Leaves, around: Counts | None
    ) -> list[Point]:
        curve = []
        for n in sorted(self.answers[unit]):
            if around and not 1 / NEAR <= n / max(around[unit], 1) <= NEAR:
                continue
            counts = start | {unit: n}
            leaves = self.shop.put(whole, [(unit[0], self._at(unit[0], counts))])
            cost = self._cost(tuple(counts.values()), leaves)
            if math.isfinite(cost):
                curve.append(Point(n, cost))
        return curve or [Point(start[unit], math.inf)]


def _group(network: Network, level: float, sites: Sequence[int]) -> _Group:
    sizes = {u: n for k in sites for u, n in _sizes(network, k).items()}
    whole = sum(sizes.values())
    total = whole - round(level * whole)
    grid = splitting.densities(1 - level) if 0 < level < 1 else [1 - level]
    return _Group(list(sizes), list(sizes.values()), total, grid, 1 - level)


def _groups(asked: Methods) -> list[tuple[Share, list[int]]]:
    """The sites that share a number of weights, as they have the same method."""
    out: list[tuple[Method, Share, list[int]]] = []
    for k, method in asked.items():
        share = method.shared
        if not isinstance(share, Share):
            continue
        same = next((sites for m, _, sites in out if m == method), None)
        if same is None:
            out.append((method, share, [k]))
        else:
            same.append(k)
    return [(share, sites) for _, share, sites in out]


def _sizes(network: Network, k: int) -> Counts:
    """The layers of a site, with the number of weights of each."""
    site = network.sites[k]
    return {(k, i): site.index.size // site.layers for i in range(site.layers)}


def _weights(site: Site, old: Leaves) -> Array:
    values = read(weights_of(site, old))
    return values.astype(wide(values.dtype))
