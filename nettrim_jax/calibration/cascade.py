"""The network in segments, so that layers can be pruned in order of execution.

Sites that do not feed each other share a level. Two streams run side by side, the
trained network's and the pruned one's, and both advance to the next level after one is
solved. So every operation runs once per stream, except the layers, which run once more
for their response under trained weights.

Knows the network and its activations; knows no solver.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from nettrim_jax.calibration.batches import Part
from nettrim_jax.calibration.capture import Activation, Draw, collect, visitor
from nettrim_jax.tracing import jaxprs
from nettrim_jax.tracing.jaxprs import Block, Literal, Op
from nettrim_jax.tracing.sites import Network, Site
from nettrim_jax.typing import Array

Env = dict[int, Array]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Levels of the chosen sites and the blocks that run between them.

    Attributes:
      levels: per level, positions in ``network.sites``.
      capture: per level, the block that computes its activations from known values.
      advance: the blocks that run before the first level and after each level.
    """

    levels: tuple[tuple[int, ...], ...]
    capture: tuple[Block, ...]
    advance: tuple[Block, ...]


# equal networks share their blocks, so they compile once
@functools.lru_cache(maxsize=16)
def plan(network: Network, chosen: tuple[int, ...]) -> Plan:
    """Orders the chosen sites by levels, and cuts the program between these."""
    level = _levels(network, chosen)
    count = max(level.values(), default=-1) + 1
    by_mark = {use.mark: level[k] for k in chosen for use in network.sites[k].uses}

    def op_level(op: Op) -> int:
        upstream = network.upstream[op.outputs[0]] if op.outputs else 0
        return max((at for mark, at in by_mark.items() if upstream & mark), default=-1)

    ops = network.flat.block.ops
    made_by = {slot: op for op in ops for slot in op.outputs}
    # leaves change, so values of leaves alone are computed again where they are needed
    steady = {op.id: op_level(op) for op in ops if network.data & set(op.outputs)}

    def block(wanted: list[Op], known_below: int) -> Block:
        """The wanted operations, and all those they need that have not run."""
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
        block([host[u.visit] for k in now for u in network.sites[k].uses], at)
        for at, now in enumerate(levels)
    ]
    # outputs of leaves alone wait until the leaves are final
    last = [
        made_by[slot]
        for slot in network.flat.block.outputs
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
    return Plan(levels, tuple(captures), tuple(_live(network, captures, advances)))


def _levels(network: Network, chosen: Sequence[int]) -> dict[int, int]:
    level: dict[int, int] = {}
    marks = {k: [use.mark for use in network.sites[k].uses] for k in chosen}
    for k in sorted(chosen, key=lambda k: network.sites[k].uses[0].op.id):
        upstream = 0
        for use in network.sites[k].uses:
            upstream |= use.upstream
        level[k] = 1 + max(
            (level[r] for r in level if any(upstream & mark for mark in marks[r])),
            default=-1,
        )
    return level


def _live(
    network: Network, captures: Sequence[Block], advances: Sequence[Block]
) -> list[Block]:
    """The advance blocks, whose outputs are the slots that later blocks read."""
    final = {ref for ref in network.flat.block.outputs if not isinstance(ref, Literal)}
    given = {*network.flat.block.inputs, *network.flat.consts}
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
    """One batch in both streams, which advance level by level.

    Args:
      part: the batch with its network.
      chosen: the sites to prune, positions in ``network.sites``.
      leaves: the trained leaves.
    """

    def __init__(self, part: Part, chosen: tuple[int, ...], leaves: Sequence[Array]):
        self.part, self.network = part, part.network
        self.plan = plan(part.network, chosen)
        self.trained: Env = {}
        self.pruned: Env = {}
        self.advance(0, leaves, leaves)

    def advance(self, at: int, old: Sequence[Array], new: Sequence[Array]) -> None:
        """Runs the segment before level ``at``, with trained and with pruned leaves."""
        block = self.plan.advance[at]
        self.trained = _advance(block, self._fixed(old), self.trained)
        self.pruned = _advance(block, self._fixed(new), self.pruned)

    def capture(
        self, at: int, old: Sequence[Array], new: Sequence[Array], draw: Draw
    ) -> tuple[Activation, ...]:
        """The activations of level ``at``, with pruned inputs and trained responses."""
        trained = Stream(self._fixed(old), self.trained)
        pruned = Stream(self._fixed(new), self.pruned)
        segment = Segment(self.network, self.plan.capture[at], draw)
        return _capture(segment, trained, pruned, self.part.key, self.part.weights)

    def outputs(
        self, old: Sequence[Array], new: Sequence[Array]
    ) -> tuple[list[Array], list[Array]]:
        """The network's outputs, trained and pruned, after the last level."""
        fixed = self._fixed(old), self._fixed(new)
        return (
            _outputs(self.network, fixed[0], self.trained),
            _outputs(self.network, fixed[1], self.pruned),
        )

    def _fixed(self, leaves: Sequence[Array]) -> Env:
        slots = [*self.network.flat.consts, *self.network.flat.block.inputs]
        values = [*self.network.consts, *leaves, *self.part.batch]
        return dict(zip(slots, values, strict=True))


@functools.partial(jax.jit, static_argnames="block")
def _advance(block: Block, fixed: Env, env: Env) -> Env:
    """Runs a segment.

    Args:
      block: one of ``Plan.advance``.
      fixed: constants, leaves and batch by slot.
      env: the values that earlier segments left.

    Returns:
      The values that later segments read.
    """
    full = {**fixed, **env}
    jaxprs.run_block(block, full)
    return {slot: full[slot] for slot in block.outputs if isinstance(slot, int)}


class Segment(NamedTuple):
    """The computation of a level's activations; hashable."""

    network: Network
    block: Block  # the level's ``Plan.capture``
    draw: Draw  # of the level's sites


class Stream(NamedTuple):
    """The values of one of the two networks, as far as it has run."""

    fixed: Env  # constants, leaves and batch by slot
    env: Env  # values that earlier segments left, by slot


@functools.partial(jax.jit, static_argnames="segment")
def _capture(
    segment: Segment,
    trained: Stream,
    pruned: Stream,
    key: Array,
    weights: Array | None,
) -> tuple[Activation, ...]:
    """The activations of a level, for which both streams draw the same rows.

    Returns:
      Activations with ``P`` of the trained stream and all else of the pruned one,
      whose own response under trained weights is ``P0``.
    """
    network, block, draw = segment
    visits, visit = visitor(network, draw, key, weights)
    both = []
    for fixed, env in (trained, pruned):
        seen = jaxprs.run_block(block, {**fixed, **env}, visits, visit)
        both.append(collect(network, draw, seen))
    return tuple(
        # a pruned router may send other rows here, which match no trained ones
        a if _ragged(network.sites[k]) else b._replace(P=a.P, P0=b.P)
        for k, a, b in zip(draw.chosen, *both, strict=True)
    )


def _ragged(site: Site) -> bool:
    """Whether the data sort the rows into groups, each with its own matrix."""
    return any(use.folding.ragged for use in site.uses)


def _outputs(network: Network, fixed: Mapping[int, Array], env: Env) -> list[Array]:
    """The network's outputs, after the last level."""
    known = {**fixed, **env}
    return [
        ref.value if isinstance(ref, Literal) else known[ref]
        for ref in network.flat.block.outputs
    ]
