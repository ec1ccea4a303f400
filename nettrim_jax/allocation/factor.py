"""One factor for all strengths that a search found, on prunings of whole networks.

Knows what a search gives each layer, and budgets; knows no solver.
"""

from collections.abc import Callable, Mapping
from typing import Any

from nettrim_jax import results
from nettrim_jax.allocation import budget as budgets
from nettrim_jax.allocation.budget import Reading
from nettrim_jax.allocation.deviation import (
    Found,
    Given,
    as_trained,
    require_room,
    step_of,
)
from nettrim_jax.allocation.evaluation import Meter
from nettrim_jax.execution.engine import kind_of
from nettrim_jax.execution.orders import Methods, Pruning, Seen
from nettrim_jax.methods.base import Method


def search_cascade(
    found: Found,
    seen: Seen,
    asked: Methods,
    run: Callable[[Mapping[int, Method]], Pruning],
    meter: Meter,
    tol: float,
) -> Found:
    """The budget in cascade mode, by one factor for all strengths that were found.

    Args:
      found: the result of a search in parallel mode.
      seen: the layers' activations in the trained network.
      asked: the sites' methods.
      run: prunes in cascade mode with these methods.
      meter: measures on the rows that steer.
      tol: the solver's tolerance.
    """
    budget, steps, fitting = meter.budget, list(found.steps), []
    network, old = seen.first.network, seen.first.model.leaves
    activations = dict(zip(asked, seen.activations, strict=True))
    taken = {k: one for k, one in found.given.items() if one.strength > 0}

    def scaled(k: int, one: Given, factor: float) -> Given:
        largest, _ = one.way.strengths(tol)
        strength = min(one.strength * factor, largest) if k in taken else 0.0
        return one._replace(strength=strength)

    def fits(factor: float) -> bool:
        given = {k: scaled(k, one, factor) for k, one in found.given.items()}
        methods: dict[int, Method] = {}
        for k, method in asked.items():
            if k not in given:
                methods[k] = method
            elif given[k].strength > 0:
                way, strength = given[k]
                kind = kind_of(network.sites[k], asked[k])
                methods[k] = way.allotted(strength, kind)
        new: list[Any] = list(old)
        reports, masks = {}, {}
        if methods:
            new, outcomes, _ = run(methods)
            masks = {k: outcome.mask for k, outcome in outcomes.items()}
            reports = {k: outcome.report for k, outcome in outcomes.items()}
        reading = meter.read(new)
        for k in asked:
            if k not in methods:
                reports[k] = as_trained(network.sites[k], old, activations[k].X)
        mine = [reports[k] for k in found.given]
        left = [int(site.nonzeros) for site in mine]
        steps.append(step_of([float(site.epsilon) for site in mine], left, reading))
        solved = all(int(site.result) in results.GOOD for site in reports.values())
        good = solved and reading.bound <= budget.most
        if good:
            one = Found(new, masks, reports, given, ())
            fitting.append((sum(left), steps[-1], one))
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
