"""The epilogue of a linear operation: sums and scales, up to a clip if there is one.

As long as a value has one reader, it is followed through additions whose other operand
does not depend on it, scales per unit, and index maps. If that ends in a clip, such as
a ReLU, ``clip(scale * X W + t)`` must be kept; otherwise the value must be kept whole.

Knows the flat program and its facts; knows no solver.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._clip import NO_CLIP, Clip
from nettrim_jax.tracing import index_maps
from nettrim_jax.tracing.clips import clip_of
from nettrim_jax.tracing.dataflow import Fact, fact_of
from nettrim_jax.tracing.folding import Folding
from nettrim_jax.tracing.jaxprs import Block, Literal, Op, apply
from nettrim_jax.typing import Array

ARITHMETIC = ("add", "add_any", "sub", "mul", "div", "neg")
SCALING = ("mul", "div", "neg", "sub")  # "sub": the result may be subtracted


@dataclasses.dataclass(frozen=True)
class Bias:
    """A leaf that a chain adds as its bias and that is read nowhere else."""

    leaf: int
    index: np.ndarray  # [*loops, b, d_out], entries of the leaf
    head: tuple[Op, ...]  # from the result to the sum with the bias
    tail: tuple[Op, ...]  # from that sum on
    start: int  # slot of that sum


@dataclasses.dataclass(frozen=True)
class Chain:
    """The affine map from a linear operation's result to the value to be kept.

    Attributes:
      ops: its operations; empty if the result itself must be kept.
      start: slot of the linear operation's result.
      end: slot of the value to be kept, before the clip.
      clip: the limits between which it passes, as a ReLU has one.
      scales: whether one of its operations may scale.
      bias: the bias that may move, if there is one.
      endless: whether it may add infinities that are meant, behind which the result
        itself must be kept.
    """

    ops: tuple[Op, ...]
    start: int
    end: int
    clip: Clip
    scales: bool
    bias: Bias | None
    endless: bool = False


def whole(chain: Chain) -> Chain:
    """The chain that keeps the linear operation's own result."""
    return Chain((), chain.start, chain.start, NO_CLIP, False, None)


def readers(block: Block) -> dict[int, list[Op]]:
    """The operations of a block that read each slot."""
    out: dict[int, list[Op]] = {}
    for op in block.ops:
        for ref in {ref for ref in op.inputs if not isinstance(ref, Literal)}:
            out.setdefault(ref, []).append(op)
    return out


def follow(
    block: Block,
    read_by: Mapping[int, list[Op]],
    folding: Folding,
    facts: Mapping[int, Fact],
    mark: int,
    avals: Mapping[int, Any],
) -> Chain:
    """Follows the result of one linear operation.

    Args:
      block: the block that the operation stands in.
      read_by: its :func:`readers`.
      folding: the folding of the linear operation.
      facts: the facts about every slot.
      mark: the operation's bit in ``Fact.upstream``.
      avals: shape of every slot.

    Returns:
      The chain to the clip; without a clip, the chain through the operations whose
      other operands depend on parameters only.
    """
    op = folding.op
    slot, labels, ops = op.outputs[0], folding.labels, []
    plain = 0  # how many of the first ops have no operand from the data
    end = {0: slot}
    while True:
        if slot in block.outputs:
            break
        clip = clip_of(slot, block, facts, read_by, avals)
        if clip is not None:
            return _chain(op, ops, slot, clip, facts)
        next_ops = read_by.get(slot, [])
        if len(next_ops) != 1:
            break
        reader = next_ops[0]
        after = _through(reader, slot, labels, facts, mark, avals)
        if after is None:
            break
        ops.append(reader)
        labels, from_data = after
        slot = reader.outputs[0]
        end[len(ops)] = slot
        if not from_data and plain == len(ops) - 1:
            plain = len(ops)
    return _chain(op, ops[:plain], end[plain], NO_CLIP, facts)


def _chain(
    op: Op, ops: Sequence[Op], end: int, clip: Clip, facts: Mapping[int, Fact]
) -> Chain:
    scales = any(o.name in SCALING for o in ops)
    endless = any(fact_of(ref, facts).endless for o in ops for ref in o.inputs)
    return Chain(tuple(ops), op.outputs[0], end, clip, scales, None, endless)


def _through(
    op: Op,
    slot: int,
    labels: tuple,
    facts: Mapping[int, Fact],
    mark: int,
    avals: Mapping[int, Any],
) -> tuple[tuple, bool] | None:
    """The labels after ``op``, and whether it adds data; None to stop before it."""
    shape = avals[slot].shape
    out = avals[op.outputs[0]]
    if not jnp.issubdtype(out.dtype, jnp.floating):
        return None
    if op.name == "neg":
        return labels, False
    if op.name not in ARITHMETIC:
        if op.inputs[0] != slot or len(op.inputs) != 1:
            return None
        moved = index_maps.relabel(op.name, op.params, labels, shape)
        return None if moved is None else (moved, False)
    left, right = op.inputs
    other = right if left == slot else left
    if left == right or out.shape != shape or (op.name == "div" and other == left):
        return None
    if isinstance(other, Literal):
        return labels, False
    fact = facts[other]
    if fact.upstream & mark:
        return None
    if op.name in ("mul", "div") and any(
        varies and label != "unit"
        for varies, label in zip(fact.varies, labels, strict=bool(fact.varies))
    ):
        return None
    return labels, fact.data


def find_bias(
    chain: Chain,
    folding: Folding,
    facts: Mapping[int, Fact],
    free: frozenset[int],
    loops: int,
    avals: Mapping[int, Any],
) -> Bias | None:
    """The first leaf among ``free`` that is added per unit, in the result's layout."""
    if folding.ragged:  # the lane of a row is not known before it runs
        return None
    slot, shape = chain.start, avals[chain.start].shape
    order = tuple(range(len(shape)))  # the axis of the result that each axis is now
    for i, op in enumerate(chain.ops):
        if op.name == "transpose":
            order = tuple(order[p] for p in op.params["permutation"])
        elif op.name not in (*ARITHMETIC, *index_maps.SAME):
            return None
        if op.name in ("add", "add_any"):
            other = op.inputs[1] if op.inputs[0] == slot else op.inputs[0]
            origin = None if isinstance(other, Literal) else facts[other].origin
            own = origin is not None and origin.factor is None
            if origin is not None and own and origin.leaf in free:
                back = tuple(loops + order.index(a) for a in range(len(order)))
                index = origin.index.transpose((*range(loops), *back))
                index = _per_unit(index, folding, shape, loops)
                if index is not None:
                    head, tail = chain.ops[: i + 1], chain.ops[i + 1 :]
                    return Bias(origin.leaf, index, head, tail, op.outputs[0])
        slot = op.outputs[0]
    return None


def _per_unit(
    index: np.ndarray, folding: Folding, shape: tuple[int, ...], loops: int
) -> np.ndarray | None:
    """``[*loops, b, d_out]`` if every unit of every lane has its own entry."""
    head = index.shape[:loops]
    if 0 in shape:
        return None
    wide = np.broadcast_to(index, head + shape)
    for axis, label in enumerate(folding.labels):
        if label == "row":
            if index.shape[loops + axis] != 1 and wide.strides[loops + axis] != 0:
                return None
            wide = wide.take([0], axis=loops + axis)
    units = folding.units(wide, loops)
    own = np.unique(units).size == units.size and units.min(initial=0) >= 0
    return units if own else None


def run(ops: Sequence[Op], start: int, value: Array, read: Any) -> Array:
    """Runs the operations of a chain on another value of its start."""
    env = {start: value}
    for op in ops:
        args = [
            env[r] if not isinstance(r, Literal) and r in env else read(r)
            for r in op.inputs
        ]
        env[op.outputs[0]] = apply(op, *args)[0]
    return env[ops[-1].outputs[0]] if ops else value


def moves(ops: Sequence[Op], value: Array) -> Array:
    """Runs only the index maps of a chain, whose transposes lead back."""
    for op in ops:
        if op.name not in ARITHMETIC:
            value = apply(op, value)[0]
    return value


def pull_back(ops: Sequence[Op], like: Array, value: Array) -> Array:
    """Brings an array from the layout of a chain's end to that of its start."""
    if not ops:
        return value
    _, pull = jax.vjp(lambda a: moves(ops, a), jnp.zeros(like.shape, value.dtype))
    return pull(value)[0]
