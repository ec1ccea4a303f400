"""The network in segments, so that layers can be pruned in order of execution.

Sites that do not feed each other share a level. Two streams run side by side, the
trained network's and the pruned one's, and both advance to the next level after one is
solved. So every operation runs once per stream, except the layers, which run once more
for their response under trained weights. Segments that compute the same, as those of
equal blocks do, are compiled once.

Knows the network and its activations; knows no solver.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nettrim_jax._compile import compiled
from nettrim_jax.calibration.batches import Part
from nettrim_jax.calibration.capture import Activation, Draw, collect, visitor
from nettrim_jax.calibration.padding import RowWeights
from nettrim_jax.tracing import canonical, jaxprs
from nettrim_jax.tracing.canonical import Routine, Segment, Uses
from nettrim_jax.tracing.jaxprs import Block, Literal, Op
from nettrim_jax.tracing.sites import Network
from nettrim_jax.typing import Array

Env = dict[int, Array]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Levels of the chosen sites and the segments that run between them.

    Attributes:
      levels: per level, positions in ``network.sites``.
      capture: per level, the segment that computes its activations from known values.
      advance: the segments that run before the first level and after each level.
      kept: after each of these, the slots of all values that are still to be read.
    """

    levels: tuple[tuple[int, ...], ...]
    capture: tuple[Segment, ...]
    advance: tuple[Segment, ...]
    kept: tuple[tuple[int, ...], ...]


# equal networks are cut once
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
    kept = _kept(network, captures, advances)
    uses = [[network.sites[k].uses for k in now] for now in levels]
    return Plan(
        levels,
        tuple(map(functools.partial(canonical.segment, network), captures, uses)),
        tuple(
            canonical.segment(network, Block((), block.ops, _made(block, slots)))
            for block, slots in zip(advances, kept, strict=True)
        ),
        kept,
    )


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


def _kept(
    network: Network, captures: Sequence[Block], advances: Sequence[Block]
) -> tuple[tuple[int, ...], ...]:
    """After each advance, the slots made by then that later blocks read."""
    final = {ref for ref in network.flat.block.outputs if not isinstance(ref, Literal)}
    made: set[int] = set()
    out = []
    for at, block in enumerate(advances):
        later = set(final)
        for other in [*captures[at:], *advances[at + 1 :]]:
            later |= set(other.inputs)
        made |= {slot for op in block.ops for slot in op.outputs}
        out.append(tuple(sorted(later & made)))
    return tuple(out)


def _made(block: Block, slots: Sequence[int]) -> tuple[int, ...]:
    """Those of the slots that the block makes."""
    made = {slot for op in block.ops for slot in op.outputs}
    return tuple(slot for slot in slots if slot in made)


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
        self.trained = self._advanced(at, self._fixed(old), self.trained)
        self.pruned = self._advanced(at, self._fixed(new), self.pruned)

    def capture(
        self, at: int, old: Sequence[Array], new: Sequence[Array], draw: Draw
    ) -> tuple[Activation, ...]:
        """The activations of level ``at``, with pruned inputs and trained responses."""
        segment, weights = self.plan.capture[at], self.part.weights
        if weights is not None:
            weights = weights.of_sites(draw.chosen)
        # a segment has the level's sites only, and in the same order
        draw = draw._replace(chosen=tuple(range(len(draw.chosen))))
        return _capture(
            Layers(segment.routine, draw),
            _read(segment.reads, self._fixed(old), self.trained),
            _read(segment.reads, self._fixed(new), self.pruned),
            self.part.key,
            weights,
        )

    def outputs(
        self, old: Sequence[Array], new: Sequence[Array]
    ) -> tuple[list[Array], list[Array]]:
        """The network's outputs, trained and pruned, after the last level."""
        fixed = self._fixed(old), self._fixed(new)
        return (
            _outputs(self.network, fixed[0], self.trained),
            _outputs(self.network, fixed[1], self.pruned),
        )

    def _advanced(self, at: int, fixed: Env, env: Env) -> Env:
        """The values of a stream after a segment, as far as later ones read them."""
        segment = self.plan.advance[at]
        made = _advance(segment.routine, _read(segment.reads, fixed, env))
        env = {**env, **dict(zip(segment.makes, made, strict=True))}
        return {slot: env[slot] for slot in self.plan.kept[at]}

    def _fixed(self, leaves: Sequence[Array]) -> Env:
        slots = [*self.network.flat.consts, *self.network.flat.block.inputs]
        values = [*self.network.consts, *leaves, *self.part.batch]
        return dict(zip(slots, values, strict=True))


def _read(slots: Sequence[int], fixed: Env, env: Env) -> list[Array]:
    """The values of slots, from what earlier segments left or what stays the same."""
    return [env[slot] if slot in env else fixed[slot] for slot in slots]


@compiled(static_argnames="routine")
def _advance(routine: Routine, inputs: list[Array]) -> list[Array]:
    """Runs a segment.

    Args:
      routine: of one of ``Plan.advance``.
      inputs: the values that it reads.

    Returns:
      The values that it makes and that later segments read.
    """
    env = dict(zip(routine.block.inputs, inputs, strict=True))
    jaxprs.run_block(routine.block, env)
    return [env[slot] for slot in routine.block.outputs if isinstance(slot, int)]


class Layers(NamedTuple):
    """The computation of a level's activations; hashable."""

    routine: Routine  # of the level's ``Plan.capture``
    draw: Draw  # of the routine's sites

    @property
    def entries(self) -> int:
        """The number of values of the arrays of both streams."""
        return 2 * self.routine.entries


@compiled(static_argnames="layers")
def _capture(
    layers: Layers,
    trained: list[Array],
    pruned: list[Array],
    key: Array,
    weights: RowWeights | None,
) -> tuple[Activation, ...]:
    """The activations of a level, for which both streams draw the same rows.

    Args:
      layers: the computation.
      trained: the values that it reads, of the trained stream.
      pruned: these of the pruned stream.
      key: the batch's key.
      weights: as for :func:`nettrim_jax.calibration.capture.capture`.

    Returns:
      Activations with ``P`` of the trained stream and all else of the pruned one,
      whose own response under trained weights is ``P0``.
    """
    routine, draw = layers
    block, sites = routine.block, routine.sites
    visits, visit = visitor(sites, draw, key, weights)
    both = []
    for values in (trained, pruned):
        env = dict(zip(block.inputs, values, strict=True))
        seen = jaxprs.run_block(block, env, visits, visit)
        both.append(collect(sites, draw, seen))
    return tuple(
        # a pruned router may send other rows here, which match no trained ones
        a if _ragged(site) else b._replace(P=a.P, P0=b.P)
        for site, a, b in zip(sites, *both, strict=True)
    )


def _ragged(uses: Uses) -> bool:
    """Whether the data sort the rows into groups, each with its own matrix."""
    return any(use.folding.ragged for use in uses)


def _outputs(network: Network, fixed: Mapping[int, Array], env: Env) -> list[Array]:
    """The network's outputs, after the last level."""
    known = {**fixed, **env}
    return [
        ref.value if isinstance(ref, Literal) else known[ref]
        for ref in network.flat.block.outputs
    ]
