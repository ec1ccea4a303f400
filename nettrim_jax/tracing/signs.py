"""Signs that a network runs as in training: rows that mix, and random numbers.

Batch normalisation that trains has means over the rows of a batch, which are then met
by every row; active dropout draws random bits. Both are found in the flat program,
without running it, and both may be meant: what is found is said, and nothing more.

Knows the flat program; knows no layers.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from nettrim_jax.tracing import index_maps
from nettrim_jax.tracing.jaxprs import Block, Flat, Literal, Op, Ref, scan_counts
from nettrim_jax.typing import LeafPath

DRAWS = ("random_bits", "rng_bit_generator", "rng_uniform")
# under vmap a sum over a named axis is one over an axis of the array
REDUCTIONS = "reduce_sum reduce_max reduce_min reduce_prod psum pmax pmin".split()
# one operand, and each axis stays where it is
IN_PLACE = "slice pad rev cumsum cumprod cummax cummin concatenate sort".split()
ENTRYWISE = -1  # where an axis stays if the operation is entry by entry

MIXED = (
    "the rows of a batch depend on each other ({name} over the batch, before {where}), "
    "as under batch normalisation that trains. If that is not meant, let apply_fn run "
    "as in inference, for example with train=False or use_running_average=True"
)
RANDOM = (
    "apply_fn draws random numbers ({name}, before {where}), as active dropout does. "
    "If that is not meant, let it run as in inference, for example with train=False "
    "or deterministic=True"
)


class Flow(NamedTuple):
    """What is known of how the rows of a batch reach a value.

    Attributes:
      axis: the axis along which the rows lie, if that is known.
      pooled: the operation that reduced all rows to one value, if there was one.
      mixed: the same, once rows have met that value again.
      random: the operation that drew random numbers, if there was one.
    """

    axis: int | None = None
    pooled: str = ""
    mixed: str = ""
    random: str = ""


NOTHING = Flow()


def signs(
    flat: Flat, leaves: int, readers: Sequence[tuple[Ref, LeafPath]]
) -> tuple[str, ...]:
    """What is to say of a network that seems to train.

    Args:
      flat: the program.
      leaves: the number of its first inputs that are params.
      readers: what each layer reads, in order of execution, with the layer's path.
    """
    walk = _Walk(flat, leaves)
    last = [(ref, "the output") for ref in flat.block.outputs]
    found: dict[str, str] = {}
    for ref, where in [*readers, *last]:
        flow = walk.flow(ref)
        for text, name in ((MIXED, flow.mixed), (RANDOM, flow.random)):
            if name and text not in found:
                found[text] = text.format(name=f"`{name}`", where=where)
    return tuple(found.values())


class _Walk:
    """The flow of every slot."""

    def __init__(self, flat: Flat, leaves: int):
        self.flat = flat
        self.flows: dict[int, Flow] = {}
        batch = flat.block.inputs[leaves:]
        shapes = [flat.avals[slot].shape for slot in batch]
        rows = max((s for s in shapes if s), key=math.prod, default=(1,))[0]
        for slot, shape in zip(batch, shapes, strict=True):
            if shape and shape[0] == rows > 1:
                self.flows[slot] = Flow(axis=0)
        self.block(flat.block)

    def flow(self, ref: Ref) -> Flow:
        """The flow of a slot or a literal."""
        return NOTHING if isinstance(ref, Literal) else self.flows.get(ref, NOTHING)

    def block(self, block: Block) -> None:
        """Finds the flows of all that a block makes."""
        for op in block.ops:
            inputs = [self.flow(ref) for ref in op.inputs]
            outputs = (self.inner if op.blocks else self.outputs)(op, inputs)
            pairs = zip(op.outputs, outputs, strict=True)
            self.flows.update((slot, flow) for slot, flow in pairs if flow != NOTHING)

    def outputs(self, op: Op, inputs: Sequence[Flow]) -> list[Flow]:
        """The flows of an operation's outputs."""
        if op.name == "optimization_barrier":
            return list(inputs)
        random = op.name if op.name in DRAWS else _first(f.random for f in inputs)
        mixed = _first(f.mixed for f in inputs)
        met = _first(f.pooled for f in inputs)
        rows = [f.axis for f in inputs if f.axis is not None]
        reduced = op.name in REDUCTIONS and rows and rows[0] in op.params["axes"]
        out = []
        for slot in op.outputs:
            axis = self.axis(op, inputs, slot)
            pooled = met
            if reduced and self.floating(slot):
                pooled = op.name
            if axis is not None and pooled:
                mixed, pooled = mixed or pooled, ""
            out.append(Flow(axis, pooled, mixed, random))
        return out

    def inner(self, op: Op, inputs: Sequence[Flow]) -> list[Flow]:
        """The flows of the outputs of a branch, or of a loop after one step."""
        if op.name == "scan":
            return self.scan(op, inputs)
        # the test of a while loop is not followed
        bodies = op.blocks[1:] if op.name == "while" else op.blocks
        for body in bodies:
            given = inputs[len(inputs) - len(body.inputs) :]
            self.flows.update(zip(body.inputs, given, strict=True))
            self.block(body)
        made = [[self.flow(ref) for ref in body.outputs] for body in bodies]
        return [_joined(each) for each in zip(*made, strict=True)]

    def floating(self, slot: int) -> bool:
        """Whether a slot has floating numbers."""
        return jnp.issubdtype(self.flat.avals[slot].dtype, jnp.floating)

    def axis(self, op: Op, inputs: Sequence[Flow], slot: int) -> int | None:
        """The axis of an output along which the rows lie."""
        out = self.flat.avals[slot].shape
        shapes = [self.flat.aval(ref).shape for ref in op.inputs]
        found = []
        for k, flow in enumerate(inputs):
            if flow.axis is not None:
                moved = _moved(op, k, flow.axis, shapes[k], out)
                found.append(flow.axis if moved == ENTRYWISE else moved)
                if moved == ENTRYWISE and not all(_spreads(one, out) for one in shapes):
                    return None  # it is of another kind
        return next((axis for axis in found if axis is not None), None)

    def scan(self, op: Op, inputs: Sequence[Flow]) -> list[Flow]:
        """The flows of a loop's outputs, after one step."""
        first, carried = scan_counts(op)
        body = op.blocks[0]
        steps = [
            f if k < first + carried or f.axis is None else _shifted(f, -1)
            for k, f in enumerate(inputs)
        ]
        self.flows.update(zip(body.inputs, steps, strict=True))
        self.block(body)
        made = [self.flow(ref) for ref in body.outputs]
        return [f if k < carried else _shifted(f, 1) for k, f in enumerate(made)]


def _first(names: Iterable[str]) -> str:
    """The first that is not empty."""
    return next((name for name in names if name), "")


def _joined(flows: Sequence[Flow]) -> Flow:
    """The flow of a value that is one of several."""
    names = ("pooled", "mixed", "random")
    every = {name: _first(getattr(f, name) for f in flows) for name in names}
    return Flow(flows[0].axis, **every)


def _shifted(flow: Flow, by: int) -> Flow:
    if flow.axis is None:
        return flow
    axis = flow.axis + by
    return flow._replace(axis=None if axis < 0 else axis)


def _spreads(shape: tuple[int, ...], out: tuple[int, ...]) -> bool:
    """Whether an operand has this shape where it is used entry by entry."""
    if not shape:
        return True
    return len(shape) == len(out) and all(
        a in (1, b) for a, b in zip(shape, out, strict=True)
    )


def _moved(
    op: Op, k: int, axis: int, shape: tuple[int, ...], out: tuple[int, ...]
) -> int | None:
    """Where an axis of operand ``k`` is in the result; None where it is gone."""
    p = op.params
    if op.name in IN_PLACE or op.name.startswith("reduce_window"):
        return axis
    if op.name == "broadcast_in_dim":
        return p["broadcast_dimensions"][axis]
    if "axes" in p and (op.name in REDUCTIONS or op.name.startswith(("reduce", "arg"))):
        before = sum(a < axis for a in p["axes"] if isinstance(a, int))
        return None if axis in p["axes"] else axis - before
    if op.name == "dot_general":
        contract, batch = (sides[k] for sides in p["dimension_numbers"])
        if axis in contract:
            return None
        if axis in batch:
            return tuple(batch).index(axis)
        free = [i for i in range(len(shape)) if i not in (*contract, *batch)]
        # the free axes of the second operand are last
        start = len(batch) if k == 0 else len(out) - len(free)
        return start + free.index(axis)
    if op.name == "conv_general_dilated":
        numbers = p["dimension_numbers"]
        there = k == 0 and axis == numbers.lhs_spec[0]
        return numbers.out_spec[0] if there else None
    labels = tuple(i == axis for i in range(len(shape)))
    moved = index_maps.relabel(op.name, p, labels, shape)
    if moved is None:
        return ENTRYWISE
    # "mixed" is an axis into which the rows are merged with others
    there = [i for i, label in enumerate(moved) if label in (True, "mixed")]
    return there[0] if there else None
