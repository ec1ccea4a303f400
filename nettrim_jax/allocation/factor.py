"""One factor for all strengths that a search found, on prunings of whole networks.

Knows what a search gives each layer, and budgets; knows no solver.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from nettrim_jax import results
from nettrim_jax.allocation import budget as budgets
from nettrim_jax.allocation import evaluation
from nettrim_jax.allocation.budget import Reading
from nettrim_jax.allocation.deviation import (
    Found,
    Given,
    as_trained,
    require_room,
    step_of,
)
from nettrim_jax.allocation.evaluation import Meter
from nettrim_jax.execution.orders import Methods, Pruning, Seen
from nettrim_jax.methods.base import Method, kind_of
from nettrim_jax.report import SearchStep, SiteReport

LOOKS, STEP = 4, 1.25  # factors to try in turns, and the largest ratio of two

Run = Callable[[Mapping[int, Method]], Pruning]


class Turned(NamedTuple):
    """How to solve and to measure in turns, and how to solve on all of their rows."""

    runs: Sequence[Run]
    meters: Sequence[Meter]
    whole: Run
    share: float  # ratio of the rows of all meters to those that check


class _Scaled:
    """What was found, with all strengths multiplied by one factor."""

    def __init__(self, found: Found, seen: Seen, asked: Methods, tol: float):
        self.found, self.asked, self.tol = found, asked, tol
        self.first = seen.first
        self.activations = dict(zip(asked, seen.activations, strict=True))
        self.any = any(one.strength > 0 for one in found.given.values())

    def given(self, factor: float) -> dict[int, Given]:
        """What each layer is given."""
        out = {}
        for k, one in self.found.given.items():
            strength = one.strength * factor
            if strength:
                strength = min(strength, one.way.strengths(self.tol)[0])
            out[k] = one._replace(strength=strength)
        return out

    def prune(self, given: Mapping[int, Given], run: Run) -> Found:
        """The network with these strengths; layers without one stay as trained."""
        methods: dict[int, Method] = {}
        for k, method in self.asked.items():
            if k not in given:
                methods[k] = method
            elif given[k].strength > 0:
                kind = kind_of(self.first.network.sites[k], method)
                methods[k] = given[k].way.allotted(given[k].strength, kind)
        old = self.first.model.leaves
        leaves, outcomes = list(old), {}
        if methods:
            leaves, outcomes, _ = run(methods)
        reports = {
            k: outcomes[k].report
            if k in outcomes
            else as_trained(self.first.network.sites[k], old, self.activations[k].X)
            for k in self.asked
        }
        masks = {k: outcome.mask for k, outcome in outcomes.items()}
        return Found(leaves, masks, reports, dict(given), ())


def _step(network: Found, reading: Reading) -> SearchStep:
    """The report's record of a network."""
    mine = [network.reports[k] for k in network.given]
    epsilons = [float(site.epsilon) for site in mine]
    return step_of(epsilons, [int(site.nonzeros) for site in mine], reading)


def _solved(reports: Mapping[int, SiteReport]) -> bool:
    return all(int(site.result) in results.GOOD for site in reports.values())


def search_cascade(
    found: Found, seen: Seen, asked: Methods, run: Run, meter: Meter, tol: float
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
    scaled, steps = _Scaled(found, seen, asked, tol), list(found.steps)
    fitting: list[tuple[Found, SearchStep]] = []

    def fits(factor: float) -> bool:
        network = scaled.prune(scaled.given(factor), run)
        reading = meter.read(network.leaves)
        steps.append(_step(network, reading))
        good = _solved(network.reports) and reading.bound <= meter.budget.most
        if good:
            fitting.append((network, steps[-1]))
        return good

    if scaled.any:
        budgets.scale(fits)
    if not fitting and not fits(0.0):
        last = steps[-1]
        require_room(Reading(float(last.value), float(last.bound)), meter.budget)
    best, last = min(fitting, key=lambda one: int(one[1].nonzeros))
    others = [step for step in steps if step is not last]
    return best._replace(steps=(*others, last))


def search_in_turns(
    found: Found, seen: Seen, asked: Methods, turned: Turned, tol: float
) -> Found:
    """The same on all rows but those that check, which solve and steer in turns.

    A factor is read on networks that are solved on two thirds of these rows, each
    measured on the third that it did not see. The network of the chosen factor is
    solved on all of them, unless the one that was found has fewer weights and a factor
    of 1 fits, or misses by no more than is worth a look.

    Args:
      found: the result of the search, on the rows of the first turn.
      seen: the layers' activations of the first turn.
      asked: the sites' methods.
      turned: the turns.
      tol: the solver's tolerance.
    """
    scaled = _Scaled(found, seen, asked, tol)
    budget = turned.meters[0].budget
    readings: dict[float, Reading] = {}
    steps: dict[float, SearchStep] = {}

    def bound(factor: float) -> float:
        given = scaled.given(factor)
        networks = [scaled.prune(given, run) for run in turned.runs]
        leaves = [network.leaves for network in networks]
        reading = evaluation.read(turned.meters, leaves, turned.share)
        readings[factor], steps[factor] = reading, _step(networks[0], reading)
        solved = all(_solved(network.reports) for network in networks)
        return reading.bound if solved else math.inf

    best = None
    if scaled.any:
        smooth = budget.measure == "deviation"
        best = budgets.aim(
            bound, budget.most, looks=LOOKS, step=STEP, proportional=smooth
        )
    mine = found.steps[-1]
    if best is not None:
        network = scaled.prune(scaled.given(best), turned.whole)
        last = _step(network, readings[best])
        # a smaller factor says that the one that was found met its rows by luck
        lucky = best < 1 / budgets.CLOSE
        better = lucky or int(last.nonzeros) <= int(mine.nonzeros)
        if better and _solved(network.reports):
            del steps[best]  # the same, on fewer rows
            every = (*found.steps, *steps.values(), last)
            return network._replace(steps=every, crossed=True)
    return found._replace(steps=(*found.steps[:-1], *steps.values(), mine))
