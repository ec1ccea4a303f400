"""Prunes to a budget of the whole network: solves, measures, and chooses.

Every layer is solved for falling epsilons, each from where the one before stopped, and
measured alone on rows that steer; ``budgets`` chooses among the answers. Knows sites,
the solver and budgets.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from nettrim_jax import results
from nettrim_jax.allocation import budget as budgets
from nettrim_jax.allocation.budget import Budget, Choice, Point, Reading
from nettrim_jax.allocation.evaluation import Leaves, Meter
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.convex.solution import Solution
from nettrim_jax.execution import layer as layers
from nettrim_jax.execution.engine import Settings, prune_sites
from nettrim_jax.methods.nettrim import Method, NetTrim
from nettrim_jax.report import SearchStep, SiteReport
from nettrim_jax.results import MethodError
from nettrim_jax.tracing import answers
from nettrim_jax.tracing.answers import Answer
from nettrim_jax.tracing.sites import Graph, Site
from nettrim_jax.typing import Array

LARGEST = 1.0  # epsilon at which no weight is needed
MORE = 1  # halving of epsilon after one for all layers fits
ROUNDS = 2  # halvings of the steps around what was chosen
EXCHANGES = 8  # networks measured at the end, per layer
PATIENCE = 10  # part of the solver's steps that one of many solves may take


class Found(NamedTuple):
    """What a search came to."""

    new: Leaves
    entries: dict[int, SiteReport]
    epsilons: dict[int, float]  # zero where a layer stays as trained
    steps: tuple[SearchStep, ...]


class _Solved(NamedTuple):
    """One solve of a layer."""

    answer: Answer
    entry: SiteReport


class _Search:
    """The answers so far and the networks made of them."""

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
        # a solve that does not come to an end soon is better left than waited for
        steps = max(settings.solver.max_steps // PATIENCE, 1)
        self.settings = settings._replace(
            solver=dataclasses.replace(settings.solver, max_steps=steps),
            show=lambda done, what: None,
        )
        self.seen = dict(zip(asked, seen, strict=True))
        self.mine = {
            k: m for k, m in asked.items() if isinstance(m, NetTrim) and m.budget
        }
        self.base = list(old)
        fixed = {k: m for k, m in asked.items() if k not in self.mine}
        self.entries = prune_sites(
            graph,
            fixed,
            [self.seen[k] for k in fixed],
            old,
            self.base,
            settings._replace(show=self.settings.show),
            fed=False,
        )
        self.beside = meter.outputs(self.base) if fixed else meter.trained
        self.starts: dict[int, Solution] = {}
        self.failed = dict.fromkeys(self.mine, False)  # in the last solve
        self.readings: dict[Choice, Reading] = {}
        self.steps: dict[Choice, SearchStep] = {}
        self.solved = {k: [self._as_trained(k)] for k in self.mine}
        self.curves = {
            k: [Point(0.0, int(a.entry.nonzeros), 0.0)]
            for k, (a,) in self.solved.items()
        }

    @property
    def most(self) -> float:
        return self.meter.budget.most

    def fits(self, choice: Choice) -> bool:
        return self.measure(choice).bound <= self.most

    def measure(self, choice: Choice) -> Reading:
        """What the network of a choice loses; a position per layer in ``mine``."""
        if choice not in self.readings:
            self.readings[choice] = reading = self.meter.read(self.leaves(choice))
            points = [self.curves[k][i] for k, i in zip(self.mine, choice, strict=True)]
            self.steps[choice] = step_of(
                [p.epsilon for p in points], sum(p.nonzeros for p in points), reading
            )
        return self.readings[choice]

    def leaves(self, choice: Choice) -> Leaves:
        new = list(self.base)
        for k, i in zip(self.mine, choice, strict=True):
            if i:
                answers.put(self._site(k), new, self.solved[k][i].answer)
        return new

    def solve(self, epsilons: Mapping[int, float]) -> None:
        """Adds an answer to the curves of these layers, where the solve converged."""
        if not epsilons:
            return
        new = list(self.base)
        entries = prune_sites(
            self.graph,
            {k: at_epsilon(self.mine[k], e) for k, e in epsilons.items()},
            [self.seen[k] for k in epsilons],
            self.old,
            new,
            self.settings,
            fed=False,
            starts=self.starts,
        )
        for k, entry in entries.items():
            self.failed[k] = int(entry.result) not in results.GOOD
            if self.failed[k]:
                continue
            solved = self._solved(new, k, entry)
            alone = list(self.base)
            answers.put(self._site(k), alone, solved.answer)
            cost = self.meter.cost(alone, self.beside)
            if np.isfinite(cost):
                self.solved[k].append(solved)
                point = Point(float(epsilons[k]), int(entry.nonzeros), cost)
                self.curves[k].append(point)

    def best(self) -> Choice:
        """The furthest choice of the chain that is reached within the budget."""
        row = budgets.chain(list(self.curves.values()))
        return row[budgets.climb(len(row), lambda i: self.fits(row[i]))]

    def shape(self, k: int) -> tuple[int, ...]:
        """Layers of one shape are solved in one call, compiled for so many."""
        return self.seen[k].X.shape + self.seen[k].P.shape

    def _site(self, k: int) -> Site:
        return self.graph.sites[k]

    def _solved(self, leaves: Leaves, k: int, entry: SiteReport) -> _Solved:
        moves = self.mine[k].bias != "fixed"
        return _Solved(answers.take(self._site(k), leaves, moves), entry)

    def _as_trained(self, k: int) -> _Solved:
        site, X = self._site(k), self.seen[k].X
        return self._solved(self.old, k, as_trained(site, self.old[site.leaf], X))


def at_epsilon(method: NetTrim, epsilon: float) -> NetTrim:
    """The method with an epsilon of this layer's own.

    It keeps a mark of its budget, which a cascade reads.
    """
    number = jnp.asarray(epsilon, jnp.float32)
    return dataclasses.replace(
        method, epsilon=number, deviation=number, drop=None, metric=None
    )


def step_of(
    epsilons: Sequence[float], nonzeros: Array | int, reading: Reading
) -> SearchStep:
    """One network of the search, as the report has it."""
    return SearchStep(
        jnp.asarray(np.asarray(epsilons), jnp.float32),
        jnp.asarray(nonzeros, jnp.int32),
        jnp.asarray(reading.value, jnp.float32),
        jnp.asarray(reading.bound, jnp.float32),
    )


def as_trained(site: Site, leaf: Array, X: Array) -> SiteReport:
    """What the report says of a layer that stays as it is."""
    lanes, d_in, d_out = site.index.shape
    zero, none = jnp.zeros(()), jnp.full((), jnp.nan)
    W = leaf.ravel()[jnp.asarray(site.index)]
    units, inputs = layers.bare(W, site.channels)
    return SiteReport(
        path=site.path,
        kind=site.kind,
        response=site.response,
        shape=(lanes, X.shape[1], d_in, d_out),
        size=site.index.size,
        nonzeros=jnp.sum(W != 0, dtype=jnp.int32),
        epsilon=zero,
        error=zero,
        held_out_error=zero,
        live_inputs=jnp.sum(jnp.any(X != 0, axis=1), dtype=jnp.int32),
        bare_units=units,
        bare_inputs=inputs,
        result=jnp.asarray(results.DIRECT, jnp.int32),
        steps=jnp.zeros((), jnp.int32),
        gap=none,
        violation=none,
        downstream=zero,
    )


def search_parallel(
    graph: Graph,
    asked: Mapping[int, Method],
    seen: Sequence[Activation],
    old: Leaves,
    settings: Settings,
    meter: Meter,
) -> Found:
    """The sparsest network found within the budget, every layer solved by itself.

    Args:
      graph: the network's layers.
      asked: the sites' methods; those without a budget are pruned as they say, first.
      seen: what each of them saw.
      old: the trained leaves.
      settings: how to solve.
      meter: measures on the rows that steer.

    Raises:
      MethodError: the other methods alone exceed the budget.
    """
    search = _Search(graph, asked, seen, old, settings, meter)
    nothing = (0,) * len(search.mine)
    require_room(search.measure(nothing), meter.budget)
    smooth = meter.budget.measure == "deviation"
    most, least = meter.budget.most, max(settings.solver.tol, 1e-4)

    def wanted(k: int, epsilon: float) -> bool:
        *_, last = search.curves[k]
        if search.failed[k] and last.epsilon:  # the smaller the harder
            return False
        # the output moves by at least in proportion to epsilon
        if not smooth or not last.epsilon:
            return True
        too_much = last.cost * (epsilon / last.epsilon) ** 2 > (2 * most) ** 2
        too_little = last.cost < (most / 8) ** 2 / len(search.mine)
        return not too_much and not too_little

    epsilon, after = LARGEST, 0
    while epsilon >= least and after <= MORE:
        settings.show(0, f"epsilon {epsilon:.3g}")
        alike = {search.shape(k) for k in search.mine if wanted(k, epsilon)}
        search.solve({k: epsilon for k in search.mine if search.shape(k) in alike})
        last = tuple(len(curve) - 1 for curve in search.curves.values())
        after += bool(after) or search.fits(last)
        epsilon /= 2
    for _ in range(ROUNDS):
        chosen = dict(zip(search.mine, search.best(), strict=True))
        finer = {
            k: budgets.between(search.curves[k], i, least) for k, i in chosen.items()
        }
        for side in range(2):
            settings.show(0, "finer")
            search.solve({k: both[side] for k, both in finer.items()})
    # what the margin and the grid leave over goes to all in proportion
    choice = search.best()
    slack = most / search.measure(choice).bound if smooth and any(choice) else 1
    if slack > 1:
        chosen = dict(zip(search.mine, choice, strict=True))
        points = {k: search.curves[k][i] for k, i in chosen.items()}
        search.solve(
            {k: min(max(p.epsilon * slack, least), LARGEST) for k, p in points.items()}
        )
        choice = search.best()
    if smooth:
        curves = list(search.curves.values())
        looks = EXCHANGES * len(curves)
        choice = budgets.exchange(curves, choice, search.measure, most, looks)
    settings.show(len(asked), "done")
    picked = dict(zip(search.mine, choice, strict=True))
    entries = {k: search.solved[k][i].entry for k, i in picked.items()}
    last_step = search.steps.pop(choice)
    return Found(
        search.leaves(choice),
        {**search.entries, **entries},
        {k: search.curves[k][i].epsilon for k, i in picked.items()},
        (*search.steps.values(), last_step),
    )


def search_cascade(
    found: Found,
    graph: Graph,
    asked: Mapping[int, Method],
    seen: Sequence[Activation],
    old: Leaves,
    run: Callable[[Mapping[int, Method]], tuple[Leaves, dict[int, SiteReport]]],
    meter: Meter,
) -> Found:
    """The same in order of execution: one factor for the epsilons that were found.

    Args:
      found: by :func:`search_parallel`.
      graph: the network's layers.
      asked: the sites' methods.
      seen: what each of them saw in the trained network.
      old: the trained leaves.
      run: prunes in cascade mode with these methods.
      meter: measures on the rows that steer.
    """
    budget, steps, fitting = meter.budget, list(found.steps), []
    fixed = {k: m for k, m in asked.items() if k not in found.epsilons}
    taken = {k: e for k, e in found.epsilons.items() if e > 0}

    def fits(factor: float) -> bool:
        epsilons = {k: min(e * factor, LARGEST) for k, e in taken.items()}
        methods = {
            k: at_epsilon(m, epsilons[k])
            if isinstance(m, NetTrim) and k in epsilons
            else m
            for k, m in asked.items()
            if k in epsilons or k in fixed
        }
        new, entries = run(methods)
        reading = meter.read(new)
        left = {
            k: as_trained(graph.sites[k], old[graph.sites[k].leaf], a.X)
            for k, a in zip(asked, seen, strict=True)
            if k not in methods
        }
        entries = {**left, **entries}
        count = sum(int(entries[k].nonzeros) for k in found.epsilons)
        listed = [epsilons.get(k, 0.0) for k in found.epsilons]
        steps.append(step_of(listed, count, reading))
        solved = all(int(site.result) in results.GOOD for site in entries.values())
        good = solved and reading.bound <= budget.most
        if good:
            named = dict(zip(found.epsilons, listed, strict=True))
            fitting.append((count, steps[-1], Found(new, entries, named, ())))
        return good

    if taken:
        budgets.scale(fits)
    if not fitting:
        taken = {}
        if not fits(0.0):
            require_room(
                Reading(float(steps[-1].value), float(steps[-1].bound)), budget
            )
    _, last, best = min(fitting, key=lambda one: one[0])
    others = [step for step in steps if step is not last]
    return best._replace(steps=(*others, last))


def require_room(reading: Reading, budget: Budget) -> None:
    """Raises MethodError if the layers without a budget take all of it."""
    if reading.bound > budget.most:
        raise MethodError(
            f"NetTrim({budget.measure}={budget.most:g}): the layers with other methods "
            f"alone take {reading.value:.3g} on the rows that steer (and "
            f"{reading.bound:.3g} with the margin for rows not seen); prune them less, "
            "or raise the budget"
        )
