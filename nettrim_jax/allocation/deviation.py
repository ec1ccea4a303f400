"""Prunes within a budget of the whole network, by a search for all strengths.

A layer's strength is its epsilon, or the odds of a zero in its pattern. Every layer is
solved for decreasing strengths, each time from the solution before, and measured alone
on the rows that steer. ``budget`` chooses among the answers.
Knows the engine and budgets; knows no particular method.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import results
from nettrim_jax.allocation import budget as budgets
from nettrim_jax.allocation.budget import Choice, Reading
from nettrim_jax.allocation.curves import Point
from nettrim_jax.allocation.evaluation import Meter
from nettrim_jax.allocation.search import Leaves, Workshop
from nettrim_jax.execution import layer
from nettrim_jax.execution.options import Options
from nettrim_jax.execution.orders import Methods, Seen
from nettrim_jax.methods.base import Budgeted, kind_of
from nettrim_jax.methods.budget import Budget
from nettrim_jax.report import SearchStep, SiteReport
from nettrim_jax.report.figures import UNKNOWN
from nettrim_jax.results import MethodError
from nettrim_jax.tracing import entries
from nettrim_jax.tracing.entries import Values
from nettrim_jax.tracing.sites import Site
from nettrim_jax.typing import Array

MORE = 1  # number of halvings after one strength for all layers fits
ROUNDS = 2  # number of halvings of the steps around the choice
EXCHANGES = 8  # number of networks measured at the end, per layer
PATIENCE = 10  # a search allows one in ``PATIENCE`` of the solver's steps


class Found(NamedTuple):
    """The result of a search."""

    leaves: Leaves
    masks: dict[int, Array]  # of sites that are pruned
    reports: dict[int, SiteReport]
    given: dict[int, "Given"]  # the parts of the budget
    steps: tuple[SearchStep, ...]
    crossed: bool = False  # whether all rows but those that check steered


class Given(NamedTuple):
    """What a search gives one layer."""

    way: Budgeted
    strength: float  # zero where the layer stays as trained


class _Solved(NamedTuple):
    """One solve of a layer."""

    values: Values
    report: SiteReport
    way: int | None  # which of the layer's alternatives; None as trained
    mask: Array | None = None
    epsilon: float = 0.0  # of the report


class _Search:
    """The answers so far, by layer and strength, and the readings of networks."""

    def __init__(self, seen: Seen, asked: Methods, options: Options, meter: Meter):
        self.mine = budgeted(asked)
        self.shop = Workshop(seen, asked, self.mine, options, meter)
        self.meter = meter
        self.activations = dict(zip(asked, seen.activations, strict=True))
        # a solve that does not converge soon is not worth waiting for
        steps = max(options.solver.max_steps // PATIENCE, 1)
        solver = dataclasses.replace(options.solver, max_steps=steps)
        self.options = options._replace(solver=solver)
        self.ways = {k: method.alternatives for k, method in self.mine.items()}
        self.kinds = {k: kind_of(self.shop.site(k), m) for k, m in self.mine.items()}
        self.starts: dict[int, dict[int, Any]] = {}  # by way
        self.failed = dict.fromkeys(self.mine, False)  # in the last solve
        self.last = dict.fromkeys(self.mine, 0)  # the answer before, of the same way
        self.readings: dict[Choice, Reading] = {}
        self.steps: dict[Choice, SearchStep] = {}
        self.solved = {k: [self._as_trained(k)] for k in self.mine}
        self.curves = {
            k: [Point(int(one.report.nonzeros), 0.0, 0.0)]
            for k, (one,) in self.solved.items()
        }

    @property
    def most(self) -> float:
        return self.meter.budget.most

    @property
    def smooth(self) -> bool:
        return self.meter.budget.measure == "deviation"

    def fits(self, choice: Choice) -> bool:
        return self.measure(choice).bound <= self.most

    def measure(self, choice: Choice) -> Reading:
        """The reading of a choice, which has one position per layer in ``mine``."""
        if choice not in self.readings:
            self.readings[choice] = reading = self.meter.read(self.leaves(choice))
            pairs = list(zip(self.mine, choice, strict=True))
            self.steps[choice] = step_of(
                [self.solved[k][i].epsilon for k, i in pairs],
                [self.curves[k][i].nonzeros for k, i in pairs],
                reading,
            )
        return self.readings[choice]

    def leaves(self, choice: Choice) -> Leaves:
        picked = zip(self.mine, choice, strict=True)
        answers = ((k, self.solved[k][i].values) for k, i in picked if i)
        return self.shop.put(self.shop.base, answers)

    def span(self, k: int, way: int) -> tuple[float, float]:
        """The largest and the least strength of a layer."""
        return self.ways[k][way].strengths(self.options.solver.tol)

    def solve(self, way: int, strengths: Mapping[int, float]) -> None:
        """Solves these layers, and adds the converged answers to their curves."""
        if not strengths:
            return
        methods = {
            k: self.ways[k][way].allotted(e, self.kinds[k])
            for k, e in strengths.items()
        }
        starts = self.starts.setdefault(way, {})
        new, outcomes = self.shop.solve(methods, self.options, starts)
        for k, outcome in outcomes.items():
            starts[k] = outcome.solved
            report = outcome.report
            self.failed[k] = int(report.result) not in results.GOOD
            if self.failed[k]:
                continue
            values = self.shop.values(k, new)
            cost = self.shop.cost(self.shop.put(self.shop.base, [(k, values)]))
            if np.isfinite(cost):
                epsilon = float(report.epsilon)
                one = _Solved(values, report, way, outcome.mask, epsilon)
                point = Point(int(report.nonzeros), cost, float(strengths[k]))
                self.last[k] = len(self.curves[k])
                self.solved[k].append(one)
                self.curves[k].append(point)

    def best(self) -> Choice:
        """The last choice of the chain that is reached within the budget."""
        row = budgets.chain(list(self.curves.values()))
        return row[budgets.climb(len(row), lambda i: self.fits(row[i]))]

    def each_way(self, strengths: Mapping[int, float], choice: Choice) -> None:
        """Solves each layer at its strength, in the way of its choice."""
        ways = {k: self.way(k, i) for k, i in zip(self.mine, choice, strict=True)}
        for way in sorted(set(ways.values())):
            self.solve(way, {k: e for k, e in strengths.items() if ways[k] == way})

    def way(self, k: int, i: int) -> int:
        """The way of an answer; as trained, that of the answer that costs least."""
        if self.solved[k][i].way is None and len(self.curves[k]) > 1:
            i = min(range(1, len(self.curves[k])), key=lambda j: self.curves[k][j].cost)
        return self.solved[k][i].way or 0

    def between(self, k: int, i: int) -> tuple[float, float]:
        """Two strengths around an answer, of its way."""
        way = self.way(k, i)
        some = [j for j, one in enumerate(self.solved[k]) if one.way in (None, way)]
        curve = [self.curves[k][j] for j in some]
        return budgets.between(curve, some.index(i), self.span(k, way)[1])

    def shape(self, k: int) -> tuple[int, ...]:
        """Layers of one shape are solved in one call, compiled for their number."""
        seen = self.activations[k]
        return seen.X.shape + seen.P.shape

    def _as_trained(self, k: int) -> _Solved:
        site, old = self.shop.site(k), self.shop.old
        report = as_trained(site, old, self.activations[k].X)
        return _Solved(self.shop.values(k, old), report, None)


def budgeted(asked: Methods) -> dict[int, Budgeted]:
    """The methods that share a budget."""
    return {
        k: cast(Budgeted, m) for k, m in asked.items() if isinstance(m.shared, Budget)
    }


def step_of(
    epsilons: Sequence[float], left: Sequence[int], reading: Reading
) -> SearchStep:
    """The report's record of one network of the search."""
    return SearchStep(
        jax.device_put(np.asarray(epsilons, np.float32)),
        jnp.asarray(sum(left), jnp.int32),
        jnp.asarray(reading.value, jnp.float32),
        jnp.asarray(reading.bound, jnp.float32),
        jax.device_put(np.asarray(left, np.int32)),
    )


def as_trained(site: Site, leaves: Sequence[Array], X: Array) -> SiteReport:
    """The report's record of a layer that stays as trained."""
    lanes, d_in, d_out = site.index.shape
    zero, none = jnp.zeros(()), UNKNOWN
    W = entries.read(entries.weights_of(site, leaves))
    units, inputs = layer.bare(W, site.channels)
    left = jnp.sum(W != 0, dtype=jnp.int32)
    return SiteReport(
        path=site.path,
        kind=site.kind,
        response=site.response,
        shape=(lanes, X.shape[1], d_in, d_out),
        size=site.index.size,
        limits=site.clip.limits,
        nonzeros=left,
        before=left,
        kept=left,
        epsilon=zero,
        error=zero,
        held_out_error=zero,
        live_inputs=jnp.sum(jnp.any(X != 0, axis=1), dtype=jnp.int32),
        idle_lanes=jnp.sum(~jnp.any(X != 0, axis=(1, 2)), dtype=jnp.int32),
        bare_units=units,
        bare_inputs=inputs,
        result=jnp.asarray(results.DIRECT, jnp.int32),
        steps=jnp.zeros((), jnp.int32),
        gap=none,
        violation=none,
        downstream=zero,
    )


def search_parallel(
    seen: Seen, asked: Methods, options: Options, meter: Meter
) -> Found:
    """The sparsest network found within the budget, each layer solved by itself.

    Args:
      seen: the layers' activations.
      asked: the sites' methods; sites without a budget are pruned first.
      options: how to solve.
      meter: measures on the rows that steer.

    Raises:
      MethodError: the sites without a budget alone exceed it.
    """
    search = _Search(seen, asked, options, meter)
    nothing = (0,) * len(search.mine)
    require_room(search.measure(nothing), meter.budget)
    for way in range(max(map(len, search.ways.values()))):
        _descend(search, way, options)
    for _ in range(ROUNDS):
        choice = search.best()
        chosen = zip(search.mine, choice, strict=True)
        finer = {k: search.between(k, i) for k, i in chosen}
        for side in range(2):
            options.show(0, "finer")
            search.each_way({k: both[side] for k, both in finer.items()}, choice)
    # the rest of the budget goes to all layers in proportion
    choice, most = search.best(), search.most
    slack = most / search.measure(choice).bound if search.smooth and any(choice) else 1
    if slack > 1:
        more = {}
        for k, i in zip(search.mine, choice, strict=True):
            largest, least = search.span(k, search.way(k, i))
            more[k] = min(max(search.curves[k][i].epsilon * slack, least), largest)
        search.each_way(more, choice)
        choice = search.best()
    if search.smooth:
        curves = list(search.curves.values())
        looks = EXCHANGES * len(curves)
        choice = budgets.exchange(curves, choice, search.measure, most, looks)
    options.show(len(asked), "done")
    picked = dict(zip(search.mine, choice, strict=True))
    answers = {k: search.solved[k][i] for k, i in picked.items()}
    masks = {k: one.mask for k, one in answers.items() if one.mask is not None}
    given = {
        k: Given(search.ways[k][search.way(k, i)], search.curves[k][i].epsilon)
        for k, i in picked.items()
    }
    last_step = search.steps.pop(choice)
    return Found(
        search.leaves(choice),
        {**search.shop.masks, **masks},
        {**search.shop.reports, **{k: one.report for k, one in answers.items()}},
        given,
        (*search.steps.values(), last_step),
    )


def _descend(search: _Search, way: int, options: Options) -> None:
    """Solves the layers that have this way for falling strengths, until all fit."""
    mine = [k for k in search.mine if way < len(search.ways[k])]
    search.failed = dict.fromkeys(search.mine, False)
    search.last = dict.fromkeys(search.mine, 0)
    most = search.most

    def wanted(k: int, strength: float) -> bool:
        last = search.curves[k][search.last[k]]
        if search.failed[k] and last.epsilon:  # a smaller strength is harder
            return False
        if not search.smooth or not last.epsilon:
            return True
        fall = (strength / last.epsilon) ** search.ways[k][way].power
        too_much = last.cost * fall**2 > (2 * most) ** 2
        too_little = last.cost < (most / 8) ** 2 / len(search.mine)
        return not too_much and not too_little

    rung, after = 1.0, 0
    while after <= MORE:
        spans = {k: search.span(k, way) for k in mine}
        rungs = {k: largest * rung for k, (largest, _) in spans.items()}
        rungs = {k: e for k, e in rungs.items() if e >= spans[k][1]}
        if not rungs:
            break
        options.show(0, f"strength {max(rungs.values()):.3g}")
        alike = {search.shape(k) for k, e in rungs.items() if wanted(k, e)}
        search.solve(way, {k: e for k, e in rungs.items() if search.shape(k) in alike})
        after += bool(after) or search.fits(tuple(search.last.values()))
        rung /= 2


def require_room(reading: Reading, budget: Budget) -> None:
    """Raises MethodError if the layers without a budget alone exceed it."""
    if reading.bound > budget.most:
        asked = f"{budget.asker}({budget.measure}={budget.most:g})"
        raise MethodError(
            f"{asked}: the layers with other methods alone take {reading.value:.3g} "
            "on the rows that steer (and "
            f"{reading.bound:.3g} with the margin for rows not seen); prune them less, "
            "or raise the budget"
        )
