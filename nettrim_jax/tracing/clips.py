"""The clip that a program makes of a value: a ReLU, ReLU6, a hard tanh, and their like.

It may be written with maxima and minima, with comparisons and choices, or behind max
pooling, which commutes with it. Its limits are constants.

Knows the flat program and its facts; knows no solver.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from nettrim_jax._clip import NO_CLIP, RELU, Clip
from nettrim_jax.tracing import index_maps
from nettrim_jax.tracing.dataflow import Fact, fact_of
from nettrim_jax.tracing.jaxprs import Block, Literal, Op, Ref

BETWEEN = ("max", "min", "clamp")
MAXIMA = ("reduce_max", "reduce_window_max")
MOVES = ("reshape", "squeeze", "transpose", "rev", "broadcast_in_dim")
# whether the comparison of a value with a limit holds where the value is above it
COMPARISONS = {"gt": True, "ge": True, "lt": False, "le": False}
Readers = Mapping[int, list[Op]]  # the operations that read each slot


def clip_of(
    slot: int,
    block: Block,
    facts: Mapping[int, Fact],
    read_by: Readers,
    avals: Mapping[int, Any],
) -> Clip | None:
    """The clip of a value, directly or behind maxima, which commute with it.

    Args:
      slot: the value, which the block does not return.
      block: the block that it stands in.
      facts: the facts about every slot.
      read_by: the operations of the block that read each slot.
      avals: shape of every slot.

    Returns:
      The limits; None if the value is used in any other way.
    """
    if clip := _direct(slot, block, facts, read_by):
        return clip
    pooled = False
    while True:
        if pooled and (clip := _direct(slot, block, facts, read_by)):
            return clip
        ops = read_by.get(slot, [])
        if len(ops) != 1 or ops[0].name not in (*MAXIMA, *MOVES, *index_maps.SAME):
            return None
        pooled = pooled or ops[0].name in MAXIMA
        if len(ops[0].inputs) != 1 or len(ops[0].outputs) != 1:
            return None
        slot = ops[0].outputs[0]
        floating = jnp.issubdtype(avals[slot].dtype, jnp.floating)
        if slot in block.outputs or not floating:
            return None


def _direct(
    slot: int, block: Block, facts: Mapping[int, Fact], read_by: Readers
) -> Clip | None:
    """The limits to which the readers of a value together clip it; None if they do not.

    Of clips one after another, as of ReLU6, it is the one that all of them make.
    """
    clip, at = NO_CLIP, slot
    while at not in block.outputs and (step := _step(at, facts, read_by)):
        both = clip.then(step[0])
        if both is None:
            return None
        clip, at = both, step[1]
        if at is None:
            break
    return None if clip.linear else clip


def _step(
    slot: int, facts: Mapping[int, Fact], read_by: Readers
) -> tuple[Clip, int | None] | None:
    """One clip of a value, and its result's slot if there is one result."""
    ops = read_by.get(slot, [])
    if not ops or ops[0].name not in BETWEEN:
        return _chosen(slot, ops, facts, read_by)
    limits = {_limits(op, slot, facts) for op in ops}
    clip = limits.pop()
    if limits or clip is None:
        return None
    return clip, ops[0].outputs[0] if len(ops) == 1 else None


def _number(ref: Ref, facts: Mapping[int, Fact]) -> float | None:
    constant = fact_of(ref, facts).constant
    return None if constant is None else constant.number


def _other(op: Op, slot: int) -> Ref:
    return op.inputs[1] if op.inputs[0] == slot else op.inputs[0]


def _limits(op: Op, slot: int, facts: Mapping[int, Fact]) -> Clip | None:
    """The limits of a maximum, a minimum or both."""
    if op.name == "clamp" and op.inputs[1] == slot:
        low, high = (_number(op.inputs[i], facts) for i in (0, 2))
        if low is None or high is None:
            return None
        return NO_CLIP.then(Clip(low, high))
    limit = None if op.name not in BETWEEN[:2] else _number(_other(op, slot), facts)
    if limit is None:
        return None
    return Clip(low=limit) if op.name == "max" else Clip(high=limit)


def _chosen(
    slot: int,
    ops: Sequence[Op],
    facts: Mapping[int, Fact],
    read_by: Readers,
) -> tuple[Clip, int | None] | None:
    """The clip that is written as choices between a value and its limits."""
    above: dict[int, tuple[float, bool]] = {}  # per comparison, whether true above
    rest = []
    for op in ops:
        limit = _number(_other(op, slot), facts) if op.name in COMPARISONS else None
        if limit is None:
            rest.append(op)
        else:
            true_above = COMPARISONS[op.name] == (op.inputs[0] == slot)
            above[op.outputs[0]] = limit, true_above
    clip, at = NO_CLIP, slot
    while above:
        step = _choice(at, rest, above, facts, read_by)
        both = None if step is None else clip.then(step[0])
        if step is None or both is None:
            return None
        clip, at = both, step[1]
        rest = read_by.get(at, [])
    return None if clip.linear else (clip, at)


def _choice(
    at: int,
    rest: Sequence[Op],
    above: dict[int, tuple[float, bool]],
    facts: Mapping[int, Fact],
    read_by: Readers,
) -> tuple[Clip, int] | None:
    """One choice between a value and a limit, whose comparison it takes away."""
    if len(rest) != 1:
        return None
    (choose,) = rest
    if choose.name == "mul":  # x * (x > 0)
        cast = _other(choose, at)
        for pred, (limit, true_above) in above.items():
            casts = read_by.get(pred, [])
            used = len(casts) == 1 and casts[0].name == "convert_element_type"
            if used and casts[0].outputs[0] == cast and limit == 0:
                if read_by.get(casts[0].outputs[0]) == [choose]:
                    del above[pred]
                    clip = RELU if true_above else Clip(high=0.0)
                    return clip, choose.outputs[0]
        return None
    pred = choose.inputs[0]
    if choose.name != "select_n" or len(choose.inputs) != 3:
        return None
    if isinstance(pred, Literal) or pred not in above:
        return None
    limit, true_above = above.pop(pred)
    high, low = choose.inputs[2], choose.inputs[1]  # where true, where false
    if not true_above:
        high, low = low, high
    if read_by.get(pred) != [choose]:
        return None
    if high == at and _number(low, facts) == limit:
        return Clip(low=limit), choose.outputs[0]
    if low == at and _number(high, facts) == limit:
        return Clip(high=limit), choose.outputs[0]
    return None
