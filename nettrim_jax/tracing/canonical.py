"""Segments of a network in numbers of their own, so that like ones compile once.

The twelfth block of a transformer does what the first one does, on other slots. A
segment's slots and operations are therefore numbered in order of appearance. What is
left, its :class:`Routine`, is equal for all segments that compute the same, wherever
they stand. The numbers in the network are kept beside it.

Knows the flat program and its uses; knows no solver.
"""

import dataclasses
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._trees import known
from nettrim_jax.tracing.epilogue import Bias, Chain
from nettrim_jax.tracing.folding import Folding
from nettrim_jax.tracing.jaxprs import BODIES, Block, Literal, Op, Ref
from nettrim_jax.tracing.sites import Network
from nettrim_jax.tracing.uses import Use

Uses = tuple[Use, ...]  # of one site
RECORDS = (Use, Folding, Chain, Bias)


@dataclasses.dataclass(frozen=True, eq=False)
class Routine:
    """A block and the uses to capture in it, in canonical numbers.

    Routines with the same content are equal. A use has neither the position of its
    bias among the leaves nor the bits of other operations, which are the network's.

    Attributes:
      block: the block; its inputs are all slots that it reads.
      sites: per site, its uses.
      entries: the number of values of all arrays.
      content: equal for routines that compute the same.
      hashed: the hash of the content, which is long.
    """

    block: Block
    sites: tuple[Uses, ...]
    entries: int
    content: Hashable
    hashed: int

    def __hash__(self) -> int:
        return self.hashed

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Routine)
            and self.hashed == other.hashed
            and self.content == other.content
        )


class Segment(NamedTuple):
    """A routine and where it stands in a network.

    Attributes:
      routine: what it computes.
      reads: the network's slots that are the routine's inputs.
      makes: the network's slots that are the routine's outputs.
    """

    routine: Routine
    reads: tuple[int, ...]
    makes: tuple[int, ...]


def segment(
    network: Network, block: Block, sites: Sequence[Sequence[Use]] = ()
) -> Segment:
    """A block of a network as a segment.

    Args:
      network: the network.
      block: operations of ``network.flat.block`` in order. Its inputs do not matter;
        its outputs are slots that these operations make, in any order.
      sites: per site, the uses to capture in it.
    """
    names = _Names(network)
    ops = tuple(names.op(op) for op in block.ops)
    uses = tuple(tuple(map(names.use, site)) for site in sites)
    reads = tuple(slot for slot in names.slots if slot not in names.made)
    made = {slot for slot in block.outputs if not isinstance(slot, Literal)}
    makes = tuple(sorted(made, key=names.slots.__getitem__))
    inputs, outputs = (tuple(map(names.slot, slots)) for slots in (reads, makes))
    avals = tuple(network.flat.avals[slot] for slot in reads)
    content = (inputs, avals, tuple(names.content), outputs, _content(uses))
    block = Block(inputs, ops, outputs)
    avals = (network.flat.avals[slot] for slot in names.slots)
    entries = sum(getattr(aval, "size", 0) for aval in avals)
    routine = Routine(block, uses, entries, content, hash(content))
    return Segment(routine, reads, makes)


class _Names:
    """Numbers slots and operations anew, in order of appearance.

    Attributes:
      slots: new numbers of slots.
      made: the slots that operations make or bodies are given.
      ops: new operations by the ids of the old ones.
      content: all that the operations are, in order.
    """

    def __init__(self, network: Network):
        self.avals = network.flat.avals
        self.consts = dict(zip(network.flat.consts, network.consts, strict=True))
        self.slots: dict[int, int] = {}
        self.made: set[int] = set()
        self.ops: dict[int, Op] = {}
        self.content: list[Hashable] = []

    def ref(self, ref: Ref) -> Ref:
        """A slot by its new number; a literal as it is."""
        return ref if isinstance(ref, Literal) else self.slot(ref)

    def slot(self, slot: int) -> int:
        """A new number, given when it is first asked for."""
        return self.slots.setdefault(slot, len(self.slots))

    def make(self, slots: Sequence[int]) -> tuple[int, ...]:
        """New numbers of slots that get their values here."""
        self.made.update(slots)
        new = tuple(map(self.slot, slots))
        self.content.append((new, tuple(self.avals[slot] for slot in slots)))
        return new

    def op(self, op: Op) -> Op:
        """An operation with all that is in it."""
        inputs = tuple(map(self.ref, op.inputs))
        skip = BODIES if op.blocks else ()
        params = {name: op.params[name] for name in op.params if name not in skip}
        head = (op.primitive, _content(params), _content(inputs), len(op.blocks))
        self.content.append(head)
        blocks = tuple(self.body(block) for block in op.blocks)
        new = dataclasses.replace(
            op,
            # the operations within have lower ids, as in the network
            id=len(self.ops),
            inputs=inputs,
            blocks=blocks,
            outputs=self.make(op.outputs),
        )
        self.ops[op.id] = new
        return new

    def body(self, block: Block) -> Block:
        """The body of control flow."""
        inputs = self.make(block.inputs)
        ops = []
        for op in block.ops:
            self.embedded(op.inputs)
            ops.append(self.op(op))
        self.embedded(block.outputs)
        outputs = tuple(map(self.ref, block.outputs))
        self.content.append((len(ops), _content(outputs)))
        return Block(inputs, tuple(ops), outputs)

    def embedded(self, refs: Sequence[Ref]) -> None:
        """Counts the values of constants to the content of a body.

        A loop that is not looked into runs by its jaxpr, which has them in itself.
        """
        for ref in refs:
            if not isinstance(ref, Literal) and ref in self.consts:
                self.content.append(_content(self.consts[ref]))

    def use(self, use: Use) -> Use:
        """A use, without what is of the network rather than of the segment."""
        op, chain = self.ops[use.op.id], use.chain
        bias = chain.bias
        if bias is not None:
            bias = dataclasses.replace(
                bias,
                leaf=-1,
                index=np.zeros(0, np.int32),
                head=self.all(bias.head),
                tail=self.all(bias.tail),
                start=self.slots[bias.start],
            )
        return dataclasses.replace(
            use,
            op=op,
            folding=dataclasses.replace(use.folding, op=op),
            act=self.ref(use.act),
            weight=self.ref(use.weight),
            chain=dataclasses.replace(
                chain,
                ops=self.all(chain.ops),
                start=self.slots[chain.start],
                end=self.slots[chain.end],
                bias=bias,
            ),
            visit=self.ops[use.visit].id,
            mark=0,
            upstream=0,
        )

    def all(self, ops: Sequence[Op]) -> tuple[Op, ...]:
        """The new operations in the place of old ones."""
        return tuple(self.ops[op.id] for op in ops)


@dataclasses.dataclass(frozen=True, eq=False)
class _Itself:
    """What is equal to itself only."""

    value: Any

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.value is other.value


def _content(value: Any) -> Hashable:
    """Equal for values that are the same in every bit, and for new operations."""
    if isinstance(value, Op):  # it stands among those of the block
        return Op, value.id
    if isinstance(value, Literal):
        return Literal, _content(value.value)
    if isinstance(value, RECORDS):
        fields = (getattr(value, field.name) for field in dataclasses.fields(value))
        return type(value), *map(_content, fields)
    if isinstance(value, tuple | list):
        return type(value), *map(_content, value)
    if isinstance(value, Mapping):
        return type(value), *((name, _content(value[name])) for name in sorted(value))
    if hasattr(value, "__array__") and not isinstance(value, type):
        return _array_content(value)
    if isinstance(value, float | complex):  # 0 and -0 would be equal
        return type(value), repr(value)
    try:
        hash(value)
    except TypeError:
        return _Itself(value)
    return type(value), value  # 1 and True would be equal


def _array_content(array: Any) -> Hashable:
    # random keys have no bytes
    if not known(array) or jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return _Itself(array)
    bits = hashlib.sha256(np.asarray(array).tobytes()).digest()
    weak = getattr(array, "weak_type", False)
    return "array", str(array.dtype), tuple(array.shape), weak, bits
