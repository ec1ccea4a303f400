"""Prunes all layers, at once or in order of execution.

Knows parts and the engine; knows no particular method.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from nettrim_jax._trees import on_host
from nettrim_jax.calibration import cascade, infinities, statistics
from nettrim_jax.calibration.batches import Part
from nettrim_jax.calibration.capture import Activation, Draw, capture, gather
from nettrim_jax.calibration.outputs import deviation_of
from nettrim_jax.execution.engine import Outcome, jobs_of, solve_sites
from nettrim_jax.execution.options import Options
from nettrim_jax.methods.base import Method
from nettrim_jax.typing import Array

Methods = Mapping[int, Method]  # by the position of a site


class Pruning(NamedTuple):
    """The outcome of a network."""

    leaves: list[Array]
    outcomes: dict[int, Outcome]
    deviation: Array  # relative change of the output on the first part


class Seen(NamedTuple):
    """The activations of the trained network's layers over all parts."""

    first: Part
    outputs: list[Array]  # of the first part
    activations: tuple[Activation, ...]  # in the order of the methods


def run(parts: Iterable[Part], asked: Methods, options: Options) -> Pruning:
    """Prunes each layer by its method, in the order that the options ask for."""
    return (in_cascade if options.cascade else in_parallel)(parts, asked, options)


def in_parallel(parts: Iterable[Part], asked: Methods, options: Options) -> Pruning:
    """Prunes all layers together, from the trained network's own activations."""
    seen = observe(parts, asked, options)
    first, old = seen.first, seen.first.model.leaves
    jobs = jobs_of(first.network, asked, seen.activations)
    new, outcomes = solve_sites(jobs, old, old, options)
    return Pruning(new, outcomes, _deviation(seen, new))


def observe(parts: Iterable[Part], asked: Methods, options: Options) -> Seen:
    """Captures the activations of the trained network's layers over all parts."""
    options.show(0, "activations")
    wanted = {k: method.statistics for k, method in asked.items()}
    draw = Draw(tuple(asked), options.rows, statistics.along(wanted))
    first: list[tuple[Part, list[Array]]] = []

    def captured(part: Part) -> tuple[Activation, ...]:
        leaves, network = part.model.leaves, part.network
        inputs = [*leaves, *part.batch]
        seen, outputs = capture(
            network, draw, network.consts, inputs, part.key, part.weights
        )
        seen = infinities.finite_rows(part, draw.chosen, seen)
        if not first:
            first.append((part, part.counted(outputs)))
        sums = statistics.apart(wanted, [part], leaves)
        return _with(seen, draw.chosen, sums)

    seen = gather(map(captured, parts), options.rows)
    return Seen(*first[0], seen)


def in_cascade(parts: Iterable[Part], asked: Methods, options: Options) -> Pruning:
    """Prunes in order of execution, with inputs from the network as pruned so far."""
    parts = list(parts)
    network, old = parts[0].network, parts[0].model.leaves
    new, outcomes = list(old), {}
    wanted = {k: method.statistics for k, method in asked.items()}
    sums = statistics.apart(wanted, parts, old)
    runs = [cascade.Run(part, tuple(asked), old) for part in parts]
    for at, level in enumerate(runs[0].plan.levels):
        options.show(len(outcomes), "activations")
        along = statistics.along({k: wanted[k] for k in level})
        draw = Draw(level, options.rows, along)
        each = (
            infinities.finite_rows(run.part, level, run.capture(at, old, new, draw))
            for run in runs
        )
        seen = _with(gather(each, options.rows), level, sums)
        jobs = jobs_of(network, {k: asked[k] for k in level}, seen, fed=at > 0)
        new, found = solve_sites(jobs, old, new, options)
        outcomes |= found
        for run in runs:
            run.advance(at + 1, old, new)
    options.show(len(asked), "done")
    both = map(parts[0].counted, runs[0].outputs(old, new))
    return Pruning(new, outcomes, deviation_of(*both))


def moved(part: Part, leaves: list[Array]) -> Array:
    """Relative change of the output; one program runs both, so they round alike."""
    return deviation_of(part.outputs(part.model.leaves), part.outputs(leaves))


def _deviation(seen: Seen, new: list[Array]) -> Array:
    """Relative change of the output, if possible without another run as trained."""
    part, old = seen.first, seen.first.model.leaves
    if not all(map(on_host, [*old, *new, *seen.outputs])):
        return moved(part, new)
    # where nothing changed, the rounding of two programs must not show
    same = all(map(np.array_equal, old, new))
    return deviation_of(seen.outputs, seen.outputs if same else part.outputs(new))


def _with(
    seen: tuple[Activation, ...],
    chosen: tuple[int, ...],
    sums: Mapping[int, Mapping[str, Array]],
) -> tuple[Activation, ...]:
    return tuple(
        one._replace(stats={**one.stats, **sums[k]})
        for k, one in zip(chosen, seen, strict=True)
    )
