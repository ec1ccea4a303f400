"""The route of a pruning: by layer, by a share, within a budget, or all at once.

Knows the searches, the orders and what methods share; knows no particular method.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from nettrim_jax.allocation import budget as budgets
from nettrim_jax.allocation import deviation, factor, levels, together, units
from nettrim_jax.allocation.budget import Reading
from nettrim_jax.allocation.deviation import Found
from nettrim_jax.allocation.evaluation import meter_on
from nettrim_jax.allocation.factor import Turned
from nettrim_jax.allocation.finished import Finished
from nettrim_jax.calibration.batches import Part, Source
from nettrim_jax.calibration.batches import parts as parts_of
from nettrim_jax.calibration.splits import Dealt, Turn, concrete, deal
from nettrim_jax.execution import orders
from nettrim_jax.execution.options import Options
from nettrim_jax.execution.orders import Methods
from nettrim_jax.methods.base import Choosing, Joining, Method
from nettrim_jax.methods.budget import Budget, Share, Together, Whole
from nettrim_jax.report import Margin, Split
from nettrim_jax.results import MethodError

# a method as given, with its request
Wish = tuple[Any, Budget | Share | Together | Whole]


class Route(NamedTuple):
    """The request of the methods to the whole network, and the data for it."""

    source: Source  # data to solve on
    budget: Budget | None
    dealt: Dealt | None  # the rows to steer by and to check on, for a budget


def plan(wishes: Sequence[Wish], source: Source, *, cascade: bool) -> Route:
    """The route for the budget or the share of the methods, with the rows dealt out.

    Args:
      wishes: the methods as the user gave them, each with its budget or share.
      source: the network and the data.
      cascade: whether layers are pruned in order of execution, where rows that solve
        and rows that steer do not change places.

    Raises:
      MethodError: they ask for more than one search, or a value is being traced.
    """
    budget, measured = _budget(wishes), _measured(wishes)
    given = source.model.params, source.key, source.weights, source.batch
    if asker := _whole(wishes):
        concrete(given, asker, "take another method, with a pattern of its own")
        source = source.stored()
    if measured:
        concrete(given, "Sparsity(scope='network')", "take scope='layer'")
        source = source.stored()
    if budget is None:
        return Route(source, None, None)
    asked = f"{budget.asker}(deviation=..., drop=...)"
    concrete(given, asked, "give an epsilon or a level")
    dealt = deal(source.batch, source.weights, source.key, turns=not cascade)
    return Route(source.of(dealt.solve, dealt.weights), budget, dealt)


def _budget(wishes: Sequence[Wish]) -> Budget | None:
    """The one budget of the methods; None if none of them has one."""
    found = list(dict.fromkeys(s for _, s in wishes if isinstance(s, Budget)))
    if len(found) > 1:
        raise MethodError(
            "method: expected one budget for the whole network, got "
            + " and ".join(f"{b.measure}={b.most:g}" for b in found)
            + "; give every entry the same deviation, or the same drop and metric"
        )
    return found[0] if found else None


def _whole(wishes: Sequence[Wish]) -> str | None:
    """The name of the method that prunes the network as a whole, if one does.

    Raises:
      MethodError: another method has a request, too.
    """
    every = [shared for _, shared in wishes if isinstance(shared, Whole | Together)]
    askers = list(dict.fromkeys(shared.asker for shared in every))
    others = [m for m, shared in wishes if shared not in every[:1]]
    if others and all(isinstance(shared, Together) for _, shared in wishes):
        raise MethodError(
            f"method: {wishes[0][0]!r} and {others[0]!r} prune all layers at once; "
            "expected them to differ in their patterns alone"
        )
    if askers and others:
        raise MethodError(
            f"method: {askers[0]} and {others[0]!r} each choose for the whole network; "
            "expected one of them. Prune twice, the second time what came of the first"
        )
    return askers[0] if askers else None


def _measured(wishes: Sequence[Wish]) -> bool:
    """Whether the share of a method is split by measuring the network."""
    mine = [m for m, s in wishes if _is_measured(s)]
    if mine and any(isinstance(s, Budget) for _, s in wishes):
        raise MethodError(
            f"method: {mine[0]!r} and a method with deviation or drop each search "
            "for the network that suits them; expected one search. Give the latter an "
            "epsilon or a level, or the pattern scope='layer'"
        )
    return bool(mine)


def _is_measured(shared: Budget | Share | Together | Whole | None) -> bool:
    return isinstance(shared, Share) and shared.measured


def follow(
    route: Route, parts: Iterable[Part], asked: Methods, options: Options
) -> Finished:
    """Prunes the network on its route; ``parts`` are those of ``route.source``."""
    parts = iter(parts)
    first = next(parts)
    every = itertools.chain([first], parts)
    extra = {}
    chooser = _chooser(asked)
    if chooser is not None:
        return units.follow(chooser, list(every), asked, options)
    joined = _joined(asked)
    if joined:
        return together.follow(joined, list(every), options)
    if levels.looks(asked):  # before layers are solved, all batches are read
        every = list(every)
        asked = levels.by_score(every, asked)
    else:
        asked = levels.by_score([first], asked)
    if any(_is_measured(method.shared) for method in asked.values()):
        asked, extra["split"] = _split(route.source, asked, options)
    if route.dealt is not None:
        return _within(route, route.dealt, list(every), asked, options)
    leaves, outcomes, deviation = orders.run(every, asked, options)
    reports = {k: outcome.report for k, outcome in outcomes.items()}
    masks = {k: outcome.mask for k, outcome in outcomes.items()}
    return Finished(leaves, masks, reports, deviation, extra)


def _chooser(asked: Methods) -> Choosing | None:
    """The method that chooses whole units, if there is one.

    Raises:
      MethodError: another layer has another method.
    """
    every: list[Any] = list(asked.values())
    found = [method for method in every if isinstance(method.shared, Whole)]
    others = [method for method in every if method not in found[:1]]
    if found and others:
        raise MethodError(
            f"method: {found[0]!r} chooses units of the whole network, whose layers "
            f"cannot have another method, got {others[0]!r}; give other layers None"
        )
    return found[0] if found else None


def _joined(asked: Methods) -> dict[int, Joining]:
    """The methods that prune all layers at once; empty if there are none.

    Raises:
      MethodError: another layer has another method.
    """
    every: dict[int, Any] = dict(asked)
    found = {k: m for k, m in every.items() if isinstance(m.shared, Together)}
    others = [method for k, method in every.items() if k not in found]
    if found and others:
        raise MethodError(
            f"method: {next(iter(found.values()))!r} prunes all layers at once, which "
            f"cannot have another method, got {others[0]!r}; give other layers None"
        )
    return found


def _split(
    source: Source, asked: Methods, options: Options
) -> tuple[dict[int, Method], Split]:
    """The methods with the number of weights that a search gives each layer."""
    half = deal(source.batch, source.weights, source.key, folds=1)
    seen = orders.observe(parts_of(source.of(half.solve, half.weights)), asked, options)
    steer = meter_on(source.of(half.steer, half.steer_weights))
    check = meter_on(source.of(half.check, half.check_weights))
    return levels.search(seen, asked, options, steer, check)


def _within(
    route: Route, dealt: Dealt, parts: list[Part], asked: Methods, options: Options
) -> Finished:
    """Prunes as far as a budget of the whole network allows."""
    source, budget = route.source, route.budget
    assert budget is not None
    steering = source.of(dealt.steer, dealt.steer_weights)
    meter = meter_on(steering, budget, dealt.share)
    seen = orders.observe(parts, asked, options)
    found = deviation.search_parallel(seen, asked, options, meter)
    tol = options.solver.tol
    if options.cascade:
        quiet = options.silent()._replace(keep=True)

        def run(methods: Methods) -> orders.Pruning:
            return orders.in_cascade(parts, methods, quiet)

        found = factor.search_cascade(found, seen, asked, run, meter, tol)
    elif dealt.whole is not None:
        turned = _turned(source, budget, dealt, dealt.whole, options)
        found = factor.search_in_turns(found, seen, asked, turned, tol)
    checking = source.of(dealt.check, dealt.check_weights)
    checked = meter_on(checking, budget).read(found.leaves).value
    extra = {
        "budget": jnp.asarray(budget.most, jnp.float32),
        "checked": jnp.asarray(checked, jnp.float32),
        "measure": budget.measure,
        "margin": _margin(found, budget.measure, dealt),
        "search": found.steps,
    }
    moved = orders.moved(seen.first, found.leaves)
    return Finished(found.leaves, found.masks, found.reports, moved, extra)


def _turned(
    source: Source, budget: Budget, dealt: Dealt, whole: Turn, options: Options
) -> Turned:
    """The turns of rows that solve and steer."""
    quiet = options.silent()._replace(keep=True)

    def solved_on(turn: Turn) -> factor.Run:
        def run(methods: Methods) -> orders.Pruning:
            parts = parts_of(source.of(turn.solve, turn.weights))
            return orders.in_parallel(parts, methods, quiet)

        return run

    turns, share = dealt.turns, dealt.share
    steer = [source.of(turn.steer, turn.steer_weights) for turn in turns]
    meters = [meter_on(one, budget, share) for one in steer]
    runs = list(map(solved_on, turns))
    return Turned(runs, meters, solved_on(whole), share * len(turns))


def _margin(found: Found, measure: str, dealt: Dealt) -> Margin:
    """What the chosen network keeps of the budget for rows that were not seen."""
    step, times = found.steps[-1], len(dealt.turns) if found.crossed else 1
    value, bound = float(step.value), float(step.bound)
    more = budgets.halving(Reading(value, bound), measure)
    return Margin(
        size=jnp.asarray(bound - value, jnp.float32),
        halved=jnp.asarray(more * dealt.given, jnp.float32),
        steering=dealt.steering * times,
        given=dealt.given,
        unit=dealt.unit,
    )
