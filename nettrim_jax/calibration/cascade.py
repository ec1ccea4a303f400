"""The network in segments, so that layers can be pruned in order of execution.

Sites that do not feed each other share a level. Two streams run side by side, the
trained network's and the pruned one's; after a level is solved both advance to the
next, so every operation runs once per stream, apart from the layers themselves,
which run once more to see what they answer under trained weights.

Knows the graph and its activations; knows no solver.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax

from nettrim_jax.calibration import capture as activations
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.tracing import jaxprs
from nettrim_jax.tracing.jaxprs import Block, Literal, Op
from nettrim_jax.tracing.sites import Graph, Site
from nettrim_jax.typing import Array

Env = dict[int, Array]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Levels of the chosen sites and the blocks that run between them.

    Attributes:
      levels: per level, positions in ``graph.sites``.
      capture: per level, what computes the level's activations from what is known.
      advance: what runs before the first level and after each.
    """

    levels: tuple[tuple[int, ...], ...]
    capture: tuple[Block, ...]
    advance: tuple[Block, ...]


# equal graphs share their blocks, so they compile once
@functools.lru_cache(maxsize=16)
def plan(graph: Graph, chosen: tuple[int, ...]) -> Plan:
    """Orders the chosen sites by what feeds what, and cuts the program between."""
    level = _levels(graph, chosen)
    count = max(level.values(), default=-1) + 1
    by_mark = {use.mark: level[k] for k in chosen for use in graph.sites[k].uses}

    def op_level(op: Op) -> int:
        upstream = graph.upstream[op.outputs[0]] if op.outputs else 0
        return max((at for mark, at in by_mark.items() if upstream & mark), default=-1)

    ops = graph.flat.block.ops
    made_by = {slot: op for op in ops for slot in op.outputs}
    # what depends on leaves alone is run anew wherever it is needed: leaves change
    steady = {op.id: op_level(op) for op in ops if graph.data & set(op.outputs)}

    def block(wanted: list[Op], known_below: int) -> Block:
        """The wanted operations and whatever they need that is not known."""
        needed: dict[int, Op] = {}
        inputs: dict[int, None] = {}
        stack = list(wanted)
        while stack:
            op = stack.pop()
            if op.id in needed:
                continue
            needed[op.id] = op
            for slot in jaxprs.slots_read(op):
                source = made_by.get(slot)
                if source is None or steady.get(source.id, known_below) < known_below:
                    inputs[slot] = None
                elif source.id not in needed:
                    stack.append(source)
        run = tuple(op for op in ops if op.id in needed)
        return Block(tuple(inputs), run, ())

    levels = tuple(tuple(k for k in chosen if level[k] == at) for at in range(count))
    host = {inner: op for op in ops for inner in jaxprs.ids_within(op)}
    captures = [
        block([host[u.visit] for k in now for u in graph.sites[k].uses], at)
        for at, now in enumerate(levels)
    ]
    # what is returned of the leaves alone waits until they are what they will be
    last = [
        made_by[slot]
        for slot in graph.flat.block.outputs
        if not isinstance(slot, Literal)
        and slot in made_by
        and made_by[slot].id not in steady
    ]
    advances = [
        block(
            [op for op in ops if steady.get(op.id) == at]
            + (last if at == count - 1 else []),
            at,
        )
        for at in range(-1, count)
    ]
    return Plan(levels, tuple(captures), tuple(_live(graph, captures, advances)))


def _levels(graph: Graph, chosen: Sequence[int]) -> dict[int, int]:
    level: dict[int, int] = {}
    marks = {k: [use.mark for use in graph.sites[k].uses] for k in chosen}
    for k in sorted(chosen, key=lambda k: graph.sites[k].uses[0].op.id):
        upstream = 0
        for use in graph.sites[k].uses:
            upstream |= use.upstream
        level[k] = 1 + max(
            (level[r] for r in level if any(upstream & mark for mark in marks[r])),
            default=-1,
        )
    return level


def _live(
    graph: Graph, captures: Sequence[Block], advances: Sequence[Block]
) -> list[Block]:
    """The advances with, as outputs, what any later block still reads."""
    final = {ref for ref in graph.flat.block.outputs if not isinstance(ref, Literal)}
    given = {*graph.flat.block.inputs, *graph.flat.consts}
    out = []
    for at, block in enumerate(advances):
        later = set(final)
        for other in [*captures[at:], *advances[at + 1 :]]:
            later |= set(other.inputs)
        made = {slot for op in block.ops for slot in op.outputs}
        kept = (later & (made | set(_before(advances[:at])))) - given
        out.append(Block(block.inputs, block.ops, tuple(sorted(kept))))
    return out


def _before(blocks: Sequence[Block]) -> list[int]:
    return [slot for block in blocks for op in block.ops for slot in op.outputs]


class Run:
    """One batch on its way through the network, as trained and as pruned.

    Args:
      graph: the network's layers.
      batch: the batch's arrays.
      key: a PRNG key.
      weights: of the rows, as for :func:`nettrim_jax.calibration.capture.capture`.
      chosen: the sites to prune, positions in ``graph.sites``.
      leaves: the trained leaves.
    """

    def __init__(
        self,
        graph: Graph,
        batch: Sequence[Array],
        key: Array,
        weights: Array | None,
        chosen: tuple[int, ...],
        leaves: Sequence[Array],
    ):
        self.graph, self.batch, self.key, self.weights = graph, batch, key, weights
        self.plan = plan(graph, chosen)
        self.trained: Env = {}
        self.pruned: Env = {}
        self.advance(0, leaves, leaves)

    def advance(self, at: int, old: Sequence[Array], new: Sequence[Array]) -> None:
        """Runs the segment before level ``at``, with trained and with pruned leaves."""
        graph, block = self.graph, self.plan.advance[at]
        self.trained = _advance(graph, block, self._fixed(old), self.trained)
        self.pruned = _advance(graph, block, self._fixed(new), self.pruned)

    def capture(
        self,
        at: int,
        old: Sequence[Array],
        new: Sequence[Array],
        rows: int,
        moments: tuple[int, ...] = (),
    ) -> tuple[Activation, ...]:
        """What the sites of level ``at`` see pruned and answered trained."""
        streams = (self._fixed(old), self.trained), (self._fixed(new), self.pruned)
        level, block = self.plan.levels[at], self.plan.capture[at]
        return _capture(
            self.graph, block, level, rows, streams, self.key, self.weights, moments
        )

    def outputs(
        self, old: Sequence[Array], new: Sequence[Array]
    ) -> tuple[list[Array], list[Array]]:
        """The network's outputs, trained and pruned, once all has been run."""
        fixed = self._fixed(old), self._fixed(new)
        return (
            _outputs(self.graph, fixed[0], self.trained),
            _outputs(self.graph, fixed[1], self.pruned),
        )

    def _fixed(self, leaves: Sequence[Array]) -> Env:
        slots = [*self.graph.flat.consts, *self.graph.flat.block.inputs]
        values = [*self.graph.consts, *leaves, *self.batch]
        return dict(zip(slots, values, strict=True))


@functools.partial(jax.jit, static_argnames=("graph", "block"))
def _advance(graph: Graph, block: Block, fixed: Env, env: Env) -> Env:
    """Runs a segment.

    Args:
      graph: the graph.
      block: one of ``Plan.advance``.
      fixed: constants, leaves and batch by slot.
      env: what earlier segments left.

    Returns:
      What later segments read.
    """
    del graph
    full = {**fixed, **env}
    jaxprs.run_block(block, full)
    return {slot: full[slot] for slot in block.outputs if isinstance(slot, int)}


@functools.partial(
    jax.jit, static_argnames=("graph", "block", "chosen", "rows", "moments")
)
def _capture(
    graph: Graph,
    block: Block,
    chosen: tuple[int, ...],
    rows: int,
    streams: tuple[tuple[Env, Env], tuple[Env, Env]],
    key: Array,
    weights: Array | None,
    moments: tuple[int, ...] = (),
) -> tuple[Activation, ...]:
    """What a level's sites see in the pruned stream and answered in the trained one.

    Args:
      graph: the graph.
      block: the level's ``Plan.capture``.
      chosen: the level's sites.
      rows: at most so many rows per lane.
      streams: ``(fixed, env)`` of the trained network, then of the pruned one.
      key: a PRNG key; both streams draw the same rows.
      weights: as in :func:`nettrim_jax.calibration.capture.capture`.
      moments: as there.

    Returns:
      Activations with ``P`` of the trained stream and all else of the pruned one,
      whose own answer under trained weights is ``P0``.
    """
    visits, visit = activations.visitor(graph, chosen, rows, key, weights, moments)
    both = []
    for fixed, env in streams:
        seen = jaxprs.run_block(block, {**fixed, **env}, visits, visit)
        both.append(activations.collect(graph, chosen, seen, rows))
    return tuple(
        # a router may send other rows here by now, which the trained ones do not match
        a if _ragged(graph.sites[k]) else b._replace(P=a.P, P0=b.P)
        for k, a, b in zip(chosen, *both, strict=True)
    )


def _ragged(site: Site) -> bool:
    """Whether groups of rows, whose sizes the data decide, meet matrices apart."""
    return any(use.folding.ragged for use in site.uses)


def _outputs(graph: Graph, fixed: Mapping[int, Array], env: Env) -> list[Array]:
    """The network's outputs, once all has been run."""
    known = {**fixed, **env}
    return [
        ref.value if isinstance(ref, Literal) else known[ref]
        for ref in graph.flat.block.outputs
    ]
