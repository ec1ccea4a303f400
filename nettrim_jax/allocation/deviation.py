"""Prunes within a budget of the whole network, by a search for all epsilons.

Every layer is solved for decreasing epsilons, each time from the solution before, and
measured alone on the rows that steer. ``budget`` chooses among the answers.
Knows the engine and budgets; knows no particular method.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

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
from nettrim_jax.execution.orders import Methods, Pruning, Seen
from nettrim_jax.methods.base import Budgeted, Method
from nettrim_jax.methods.budget import Budget
from nettrim_jax.report import SearchStep, SiteReport
from nettrim_jax.report.figures import UNKNOWN
from nettrim_jax.results import MethodError
from nettrim_jax.tracing import entries
from nettrim_jax.tracing.entries import Values
from nettrim_jax.tracing.sites import Site
from nettrim_jax.typing import Array

LARGEST = 1.0  # epsilon at which no weight is needed
MORE = 1  # number of halvings after one epsilon for all layers fits
ROUNDS = 2  # number of halvings of the steps around the choice
EXCHANGES = 8  # number of networks measured at the end, per layer
PATIENCE = 10  # a search allows one in ``PATIENCE`` of the solver's steps


class Found(NamedTuple):
    """The result of a search."""

    leaves: Leaves
    masks: dict[int, Array]  # of sites without a part of the budget
    reports: dict[int, SiteReport]
    epsilons: dict[int, float]  # zero where a layer stays as trained
    steps: tuple[SearchStep, ...]


class _Solved(NamedTuple):
    """One solve of a layer."""

    values: Values
    report: SiteReport


class _Search:
    """The answers so far, by layer and epsilon, and the readings of networks."""

    def __init__(self, seen: Seen, asked: Methods, options: Options, meter: Meter):
        self.mine = _budgeted(asked)
        self.shop = Workshop(seen, asked, self.mine, options, meter)
        self.meter = meter
        self.activations = dict(zip(asked, seen.activations, strict=True))
        # a solve that does not converge soon is not worth waiting for
        steps = max(options.solver.max_steps // PATIENCE, 1)
        solver = dataclasses.replace(options.solver, max_steps=steps)
        self.options = options._replace(solver=solver)
        self.starts: dict[int, Any] = {}
        self.failed = dict.fromkeys(self.mine, False)  # in the last solve
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

    def fits(self, choice: Choice) -> bool:
        return self.measure(choice).bound <= self.most

    def measure(self, choice: Choice) -> Reading:
        """The reading of a choice, which has one position per layer in ``mine``."""
        if choice not in self.readings:
            self.readings[choice] = reading = self.meter.read(self.leaves(choice))
            points = [self.curves[k][i] for k, i in zip(self.mine, choice, strict=True)]
            self.steps[choice] = step_of(
                [p.epsilon for p in points], sum(p.nonzeros for p in points), reading
            )
        return self.readings[choice]

    def leaves(self, choice: Choice) -> Leaves:
        picked = zip(self.mine, choice, strict=True)
        answers = ((k, self.solved[k][i].values) for k, i in picked if i)
        return self.shop.put(self.shop.base, answers)

    def solve(self, epsilons: Mapping[int, float]) -> None:
        """Solves these layers, and adds the converged answers to their curves."""
        if not epsilons:
            return
        methods = {k: self.mine[k].allotted(e) for k, e in epsilons.items()}
        new, outcomes = self.shop.solve(methods, self.options, self.starts)
        for k, outcome in outcomes.items():
            self.starts[k] = outcome.solved
            report = outcome.report
            self.failed[k] = int(report.result) not in results.GOOD
            if self.failed[k]:
                continue
            values = self.shop.values(k, new)
            cost = self.shop.cost(self.shop.put(self.shop.base, [(k, values)]))
            if np.isfinite(cost):
                self.solved[k].append(_Solved(values, report))
                point = Point(int(report.nonzeros), cost, float(epsilons[k]))
                self.curves[k].append(point)

    def best(self) -> Choice:
        """The last choice of the chain that is reached within the budget."""
        row = budgets.chain(list(self.curves.values()))
        return row[budgets.climb(len(row), lambda i: self.fits(row[i]))]

    def shape(self, k: int) -> tuple[int, ...]:
        """Layers of one shape are solved in one call, compiled for their number."""
        seen = self.activations[k]
        return seen.X.shape + seen.P.shape

    def _as_trained(self, k: int) -> _Solved:
        site, old = self.shop.site(k), self.shop.old
        report = as_trained(site, old, self.activations[k].X)
        return _Solved(self.shop.values(k, old), report)


def _budgeted(asked: Methods) -> dict[int, Budgeted]:
    """The methods that share a budget."""
    return {
        k: cast(Budgeted, m) for k, m in asked.items() if isinstance(m.shared, Budget)
    }


def step_of(
    epsilons: Sequence[float], nonzeros: Array | int, reading: Reading
) -> SearchStep:
    """The report's record of one network of the search."""
    return SearchStep(
        jnp.asarray(np.asarray(epsilons), jnp.float32),
        jnp.asarray(nonzeros, jnp.int32),
        jnp.asarray(reading.value, jnp.float32),
        jnp.asarray(reading.bound, jnp.float32),
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
    smooth = meter.budget.measure == "deviation"
    most, least = meter.budget.most, max(options.solver.tol, 1e-4)

    def wanted(k: int, epsilon: float) -> bool:
        *_, last = search.curves[k]
        if search.failed[k] and last.epsilon:  # a smaller epsilon is harder
            return False
        # the output's movement falls at most in proportion to epsilon
        if not smooth or not last.epsilon:
            return True
        too_much = last.cost * (epsilon / last.epsilon) ** 2 > (2 * most) ** 2
        too_little = last.cost < (most / 8) ** 2 / len(search.mine)
        return not too_much and not too_little

    epsilon, after = LARGEST, 0
    while epsilon >= least and after <= MORE:
        options.show(0, f"epsilon {epsilon:.3g}")
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
            options.show(0, "finer")
            search.solve({k: both[side] for k, both in finer.items()})
    # the rest of the budget goes to all layers in proportion
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
    options.show(len(asked), "done")
    picked = dict(zip(search.mine, choice, strict=True))
    reports = {k: search.solved[k][i].report for k, i in picked.items()}
    last_step = search.steps.pop(choice)
    return Found(
        search.leaves(choice),
        search.shop.masks,
        {**search.shop.reports, **reports},
        {k: search.curves[k][i].epsilon for k, i in picked.items()},
        (*search.steps.values(), last_step),
    )


def search_cascade(
    found: Found,
    seen: Seen,
    asked: Methods,
    run: Callable[[Mapping[int, Method]], Pruning],
    meter: Meter,
) -> Found:
    """The same in cascade mode, by one factor for all epsilons that were found.

    Args:
      found: the result of :func:`search_parallel`.
      seen: the layers' activations in the trained network.
      asked: the sites' methods.
      run: prunes in cascade mode with these methods.
      meter: measures on the rows that steer.
    """
    budget, steps, fitting = meter.budget, list(found.steps), []
    network, old = seen.first.network, seen.first.model.leaves
    activations = dict(zip(asked, seen.activations, strict=True))
    taken = {k: e for k, e in found.epsilons.items() if e > 0}
    mine = _budgeted(asked)
    fixed = {k: m for k, m in asked.items() if k not in found.epsilons}

    def fits(factor: float) -> bool:
        epsilons = {k: min(e * factor, LARGEST) for k, e in taken.items()}
        given = {k: mine[k].allotted(e) for k, e in epsilons.items()}
        methods = {k: {**fixed, **given}[k] for k in asked if k in fixed or k in given}
        new, reports, masks = list(old), {}, {}
        if methods:
            new, outcomes, _ = run(methods)
            masks = {k: outcome.mask for k, outcome in outcomes.items()}
            reports = {k: outcome.report for k, outcome in outcomes.items()}
        reading = meter.read(new)
        for k in asked:
            if k not in methods:
                site, X = network.sites[k], activations[k].X
                reports[k] = as_trained(site, old, X)
        count = sum(int(reports[k].nonzeros) for k in found.epsilons)
        listed = [epsilons.get(k, 0.0) for k in found.epsilons]
        steps.append(step_of(listed, count, reading))
        solved = all(int(site.result) in results.GOOD for site in reports.values())
        good = solved and reading.bound <= budget.most
        if good:
            named = dict(zip(found.epsilons, listed, strict=True))
            fitting.append((count, steps[-1], Found(new, masks, reports, named, ())))
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
    """Raises MethodError if the layers without a budget alone exceed it."""
    if reading.bound > budget.most:
        raise MethodError(
            f"NetTrim({budget.measure}={budget.most:g}): the layers with other methods "
            f"alone take {reading.value:.3g} on the rows that steer (and "
            f"{reading.bound:.3g} with the margin for rows not seen); prune them less, "
            "or raise the budget"
        )
