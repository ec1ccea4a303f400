"""Follows the axes of the rows' weights through a program.

``weights`` have one number per sample, or per sample and position. Here the axes of
every value are followed from the batch to the rows of each layer, through transposes,
merges, loops over time, gathers and products, so that each row finds its weight.

Knows the flat program; knows no solver.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from nettrim_jax.tracing import axis_rules
from nettrim_jax.tracing.jaxprs import Block, Flat, Literal, Op, Ref, scan_counts
from nettrim_jax.tracing.labels import (
    Factor,
    Labels,
    is_lost,
    joined,
    plain,
    whole,
)
from nettrim_jax.tracing.uses import Use


class Axes(NamedTuple):
    """The labels of a use's rows; hashable."""

    rows: Labels  # per axis of the rows, see ``Folding.row_shape``
    steps: Labels  # per enclosing loop, of its steps


class Found(NamedTuple):
    """The axes of all that weights are asked of."""

    uses: dict[int, Axes]  # by the id of the operation
    outputs: tuple[Labels, ...]  # of each output of the program, per axis


def axes_of(
    flat: Flat, first: int, uses: Sequence[Use], shape: tuple[int, ...]
) -> Found | None:
    """The axes of the rows of each use, and those of the outputs.

    Args:
      flat: the program.
      first: number of its inputs that are no part of the batch.
      uses: the uses.
      shape: shape of the weights.

    Returns:
      The labels; None if no array of the batch has the axes of the weights as its first
      ones, apart or merged.
    """
    walk = _Walk(flat)
    given = flat.block.inputs[first:]
    shapes = [tuple(flat.avals[slot].shape) for slot in given]
    fits = any(_prefix(own, shape) for own in shapes)
    size = math.prod(shape)
    if not fits and not any(own and own[0] == size for own in shapes):
        return None
    for slot, own in zip(given, shapes, strict=True):
        labels = list(plain(own))
        if fits:
            for axis in range(_prefix(own, shape)):
                labels[axis] = whole(axis, own[axis])
        elif own and own[0] == size:  # given as one axis
            labels[0] = tuple(Factor(a, n) for a, n in enumerate(shape) if n > 1)
        walk.labels[slot] = tuple(labels)
    walk.block(flat.block, ())
    out = {}
    for use in uses:
        labels = walk.of(use.op.outputs[0])
        names = use.folding.labels
        rows = (a for a in use.folding.result_order if names[a] == "row")
        out[use.op.id] = Axes(tuple(labels[a] for a in rows), walk.steps[use.op.id])
    return Found(out, tuple(map(walk.of, flat.block.outputs)))


def _prefix(own: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The number of first axes of the same sizes; zero if not even one."""
    count = 0
    while count < min(len(own), len(shape)) and own[count] == shape[count]:
        count += 1
    return count


class _Walk:
    """The labels of every slot and, in ``steps``, of the loops around operations."""

    def __init__(self, flat: Flat):
        self.flat = flat
        self.labels: dict[int, Labels] = {}
        self.steps: dict[int, Labels] = {}

    def of(self, ref: Ref) -> Labels:
        """The labels of a slot or a literal."""
        known = None if isinstance(ref, Literal) else self.labels.get(ref)
        return plain(self.flat.aval(ref).shape) if known is None else known

    def block(self, block: Block, steps: Labels) -> None:
        """Labels all that a block makes, within loops of these labels."""
        for op in block.ops:
            self.steps[op.id] = steps
            if op.name == "scan" and op.blocks:
                self.scan(op, steps)
            elif op.name in ("cond", "while") and op.blocks:
                self.branches(op, steps)
            else:
                self.labels.update(zip(op.outputs, self.results(op), strict=True))

    def results(self, op: Op) -> list[Labels]:
        """The labels of an operation's results."""
        before = [tuple(self.flat.aval(ref).shape) for ref in op.inputs]
        after = [tuple(self.flat.avals[slot].shape) for slot in op.outputs]
        return axis_rules.results(
            op, [self.of(ref) for ref in op.inputs], before, after
        )

    def scan(self, op: Op, steps: Labels) -> None:
        first, carried = scan_counts(op)
        body, length = op.blocks[0], op.params["length"]
        inputs = [self.of(ref) for ref in op.inputs]
        each = inputs[first + carried :]
        why = "a `scan` goes through several axes at once"
        loop = joined([a[0] for a in each] or [whole(-1, length)], why)
        carry = inputs[first : first + carried]
        # a state that starts with constants takes its axes from what is added
        for _ in range(len(carry) + 2):
            given = [*inputs[:first], *carry, *(a[1:] for a in each)]
            self.labels.update(zip(body.inputs, given, strict=True))
            self.block(body, (*steps, loop))
            after = [self.of(ref) for ref in body.outputs]
            both = zip(carry, after[:carried], strict=True)
            new = [
                _meet(*two, "a `scan` changes what it is an axis of") for two in both
            ]
            if new == carry:
                break
            carry = new
        stacked = [(loop, *labels) for labels in after[carried:]]
        self.labels.update(zip(op.outputs, [*carry, *stacked], strict=True))

    def branches(self, op: Op, steps: Labels) -> None:
        inputs = [self.of(ref) for ref in op.inputs]
        if op.name == "cond":
            given = [inputs[1:]] * len(op.blocks)
            after = []
        else:
            n, m = op.params["cond_nconsts"], op.params["body_nconsts"]
            state = inputs[n + m :]
            given = [[*inputs[:n], *state], [*inputs[n : n + m], *state]]
            after = [state]
        for body, mine in zip(op.blocks, given, strict=True):
            self.labels.update(zip(body.inputs, mine, strict=True))
            self.block(body, steps)
            if len(body.outputs) == len(op.outputs):
                after.append([self.of(ref) for ref in body.outputs])
        why = f"a `{op.name}` changes what it is an axis of"
        found = after[0]
        for other in after[1:]:
            found = [_meet(a, b, why) for a, b in zip(found, other, strict=True)]
        self.labels.update(zip(op.outputs, found, strict=True))


def _meet(one: Labels, other: Labels, why: str) -> Labels:
    """The labels of what may be either of two values."""
    out = []
    for two in zip(one, other, strict=True):
        lost = [label for label in two if is_lost(label)]
        out.append(lost[0] if lost else joined(two, why))
    return tuple(out)
