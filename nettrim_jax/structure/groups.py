"""Groups of units that can be removed from a network, and what cannot, with reasons.

Units that stand at the same places of the same leaves are one group. What goes together
was found by the walk; here it gets its names, kinds and places.

Knows walks; removes nothing.
"""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from nettrim_jax.structure.ids import (
    BATCHED,
    CHANNEL,
    INNER,
    MIXED,
    STATE,
    VARIES,
    Settled,
)
from nettrim_jax.structure.program import Followed, followed, traced
from nettrim_jax.structure.records import Entry, Group, Refusal, Structure
from nettrim_jax.typing import ApplyFn, Batch, LeafPath, Params

UNSUMMED = "no product sums over it"
ALONE = "it has one unit, and the last one stays"


def units(params: Params, apply_fn: ApplyFn, batch: Batch) -> Structure:
    r"""Finds what can be removed from a network as a whole: neurons, channels, heads.

    Each index of each axis of each value of the program is a variable, true if it is
    removed. An operation that needs two indices together equates them; one that merges
    axes makes their product's index the disjunction of both,

    .. math::
        r_{(i, j)} = r_i \lor r_j ;

    one that needs an index sets it false. A unit is a variable that is left free. Only
    shapes matter, so arrays may be ``jax.ShapeDtypeStruct``.

    Args:
      params: a pytree of arrays, or of their shapes and dtypes.
      apply_fn: ``apply_fn(params, batch)``, traceable by JAX.
      batch: its second argument, or its shapes and dtypes.

    Returns:
      The groups of units, and what has to stay, with the operation that is the reason.

    Raises:
      ApplyFnError: ``apply_fn`` is not callable or fails on these arguments.
      BatchError: a leaf of the batch holds no numbers.
      ParamsError: there is no floating leaf.

    Example:
      >>> import jax
      >>> import nettrim_jax as nt
      >>> shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, "float32")
      >>> params = {"hidden": shape(20, 300), "output": shape(300, 10)}
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["hidden"]) @ params["output"]
      >>> found = nt.units(params, apply_fn, shape(8, 20))
      >>> [(group.name, group.kind, group.count) for group in found.groups]
      [('hidden', 'neuron', 300)]
      >>> found.groups[0].producers, found.groups[0].consumers
      (('hidden',), ('output',))
      >>> print(found)
      layer       kind   units leaves  steps
      hidden    neuron     300      2
      stays: hidden[0]: it is an axis of the network's input
      stays: output[1]: it is an axis of the network's output
    """
    return structure_of(followed(traced(apply_fn, params, batch)))


def structure_of(found: Followed) -> Structure:
    """The groups of a program whose axes were followed."""
    settled = _with_sums(found, found.walk.ids.settle())
    places = _places(found, settled)
    groups, alone = _grouped(found, settled, places)
    return Structure(tuple(groups), (*_refused(found, settled), *alone))


def _with_sums(found: Followed, settled: Settled) -> Settled:
    """Ids that no product sums over stay: another batch may look at them."""
    ids = found.walk.ids
    summed = np.zeros(ids.count, bool)
    for some in found.walk.summed:
        summed[settled.root[some]] = True
    bare = (settled.root == np.arange(ids.count)) & ~ids.to_parts(summed)
    bare[ids.pairs()[0]] = False  # what stands for two goes with them
    ids.keep(np.flatnonzero(bare), UNSUMMED)
    return ids.settle()


class _Place(NamedTuple):
    """Along one axis, by one way through what stands for two: roots of parts.

    Attributes:
      leaf: the number of the leaf or constant.
      axis: the axis.
      way: ``"0"`` for the slower part of merged axes, ``"1"`` for the faster.
      roots: the roots of the units there, ``[n]``; -1 where there is none.
    """

    leaf: int
    axis: int
    way: str
    roots: np.ndarray


def _places(found: Followed, settled: Settled) -> list[_Place]:
    """Every axis of every leaf and constant, taken apart."""
    every = [(k, value) for k, value in enumerate(found.leaves)]
    every += [(found.walk.leaves + k, v) for k, v in found.walk.closed_over()]
    out = []
    for leaf, value in every:
        for at, axis in enumerate(value.axes):
            if axis.ids is None:
                continue
            parts = parts_of(found, settled, settled.root[axis.ids])
            out += [_Place(leaf, at, way, roots) for way, roots in parts]
    return out


def parts_of(
    found: Followed, settled: Settled, roots: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """The free ids behind some, by the way through what stands for two."""
    out, waiting = [], [("", roots)]
    while waiting:
        way, roots = waiting.pop(0)
        here = roots >= 0
        known, one, other = found.walk.ids.parts(roots[here])
        both = np.flatnonzero(here)[known]
        alone = here.copy()
        alone[both] = False
        alone[alone] = settled.why[roots[alone]] == 0
        if alone.any():
            out.append((way, np.where(alone, roots, -1)))
        if both.size and len(way) < 16:  # a part of itself would go on for ever
            for sign, part in (("0", one), ("1", other)):
                inner = np.full(len(roots), -1, roots.dtype)
                inner[both] = part
                waiting.append((way + sign, inner))
    return out


def roots_of(found: Followed, settled: Settled, group: Group) -> np.ndarray:
    """The roots of a group's units, ``[count]``."""
    entry = next(entry for entry in group.entries if entry.leaf is not None)
    assert entry.leaf is not None
    ids = found.leaves[entry.leaf].axes[entry.axis].ids
    roots = dict(parts_of(found, settled, settled.root[ids]))[entry.way]
    out = np.full(group.count, -1, roots.dtype)
    mine = entry.units >= 0
    out[entry.units[mine]] = roots[mine]
    return out


def _grouped(
    found: Followed, settled: Settled, places: list[_Place]
) -> tuple[list[Group], list[Refusal]]:
    """The groups: units that stand at the same places. A lone unit has to stay."""
    # of each root, a hash of all places where it stands
    key = np.zeros(found.walk.ids.count, np.uint64)
    draw = np.random.default_rng(0)
    for place in places:
        mine = np.unique(place.roots[place.roots >= 0])
        key[mine] += np.uint64(draw.integers(1, 2**63))
    # and of all parts that are cut out of an axis: each must keep a unit
    for ids in found.walk.parts:
        for _, roots in parts_of(found, settled, settled.root[ids]):
            mine = np.unique(roots[roots >= 0])
            key[mine] += np.uint64(draw.integers(1, 2**63))
    members: dict[int, list[tuple[_Place, np.ndarray]]] = {}
    for place in places:
        own = np.where(place.roots >= 0, key[place.roots], 0)
        for number in np.unique(own[own > 0]).tolist():
            roots = np.where(own == number, place.roots, -1)
            members.setdefault(number, []).append((place, roots))
    links = [_linked(found, settled, key, side) for side in ("outputs", "inputs")]
    drafts, alone = [], []
    for number, where in members.items():
        place, roots = where[0]
        if place.leaf >= found.walk.leaves:  # in no leaf at all
            continue
        ends = [one.get(number, ()) for one in links]
        draft = _Draft(found, settled, where, *ends)
        if draft.count > 1:
            drafts.append(draft)
        else:
            count = int((roots >= 0).sum())
            alone.append(Refusal(draft.path(place.leaf), place.axis, count, ALONE))
    counts = Counter(draft.name for draft in drafts)
    named: Counter[str] = Counter()
    groups = []
    for draft in drafts:
        name = draft.name
        if counts[name] > 1:
            name = f"{name}:{draft.kind}"
            named[name] += 1
            name += f" {named[name]}" if named[name] > 1 else ""
        groups.append(draft.group(name))
    return groups, alone


def _linked(
    found: Followed, settled: Settled, key: np.ndarray, side: str
) -> dict[int, tuple[LeafPath, ...]]:
    """By key, the leaves of the linear operations that make, or sum over, units."""
    out: dict[int, dict[LeafPath, None]] = {}
    for seen in found.walk.seen:
        record: Any = seen.product
        if record.source is None or record.source >= found.walk.leaves:
            continue
        path = found.program.paths[record.source]
        for ids in getattr(record, side):
            for _, roots in parts_of(found, settled, settled.root[ids]):
                for number in np.unique(key[roots[roots >= 0]]).tolist():
                    out.setdefault(number, {})[path] = None
    return {number: tuple(paths) for number, paths in out.items()}


class _Draft:
    """A group, before it has a name of its own."""

    def __init__(
        self,
        found: Followed,
        settled: Settled,
        where: list[tuple[_Place, np.ndarray]],
        producers: tuple[LeafPath, ...],
        consumers: tuple[LeafPath, ...],
    ):
        self.found, self.settled, self.where = found, settled, where
        self.producers, self.consumers = producers, consumers
        first = where[0][1]
        _, at = np.unique(first, return_index=True)
        order = first[np.sort(at)]
        self.roots = order[order >= 0]
        self.count = len(self.roots)
        self.kind = self.kind_of()

    @property
    def name(self) -> str:
        """The path of the first leaf that makes the units."""
        return (*self.producers, self.path(self.where[0][0].leaf))[0]

    def path(self, leaf: int) -> LeafPath:
        """The path of a leaf, or what a constant is called."""
        count = self.found.walk.leaves
        if leaf >= count:
            return f"constant {leaf - count}"
        return self.found.program.paths[leaf]

    def kind_of(self) -> str:
        """What the units are called."""
        roles = np.bitwise_or.reduce(self.settled.roles[self.roots])
        ways = {place.way[-1:] for place, _ in self.where}
        if roles & BATCHED:
            return "head"
        if roles & CHANNEL:
            return "group" if ways == {"0"} else "channel"
        if roles & INNER or ways == {"1"}:
            return "dimension"
        return "state" if roles & STATE else "neuron"

    def steps(self) -> tuple[int, ...]:
        """The loops whose every step may choose for itself."""
        walk, settled = self.found.walk, self.settled
        roles = np.bitwise_or.reduce(settled.roles[self.roots])
        loops = set(settled.loop[self.roots].tolist())
        if roles & (VARIES | MIXED) or len(loops) != 1:
            return ()
        [loop] = loops
        chain = []
        while loop > 0:
            chain.insert(0, loop)
            loop = walk.loops[loop][0]
        for place, _ in self.where:
            given = [walk.steps.get((place.leaf, k)) for k in range(len(chain))]
            if given != chain or place.axis < len(chain):
                return ()
        return tuple(walk.loops[loop][1] for loop in chain)

    def group(self, name: str) -> Group:
        """The group of this name."""
        # the last number is that of no root
        number = np.full(self.found.walk.ids.count + 1, -1, np.int32)
        number[self.roots] = np.arange(self.count)
        entries = []
        for place, roots in self.where:
            mine = place.leaf < self.found.walk.leaves
            entries.append(
                Entry(
                    leaf=place.leaf if mine else None,
                    path=self.path(place.leaf),
                    axis=place.axis,
                    units=number[roots],
                    way=place.way,
                )
            )
        return Group(
            name=name,
            kind=self.kind,
            count=self.count,
            steps=self.steps(),
            entries=tuple(entries),
            producers=self.producers,
            consumers=self.consumers,
        )


def _refused(found: Followed, settled: Settled) -> list[Refusal]:
    """Of every axis of a leaf, the indices that have to stay."""
    out = []
    reasons = found.walk.ids.reasons
    for path, value in zip(found.program.paths, found.leaves, strict=True):
        for at, axis in enumerate(value.axes):
            if axis.ids is None:
                continue
            why = settled.why[settled.root[axis.ids]]
            for number in np.unique(why[why > 0]):
                count = int((why == number).sum())
                out.append(Refusal(path, at, count, reasons[number - 1]))
    return out
