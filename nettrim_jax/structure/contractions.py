"""Rules of products that sum over axes of both operands.

Knows these operations; knows no program.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nettrim_jax.structure.ids import BATCHED, INNER
from nettrim_jax.structure.registry import Follower, Product, rule
from nettrim_jax.structure.values import ANY, BAD, CONSTANT, ZERO, Axis, Value

Pairs = Sequence[Sequence[int]]


def beside(axis: Axis, other: Value) -> Axis:
    """An axis of one operand in the product with another one."""
    if axis.ids is None:
        return axis
    bad = (axis.levels == BAD) | (other.whole == BAD)[:, None]
    zero = (axis.levels == ZERO) | (other.whole == ZERO)[:, None]
    least = np.where(zero, np.int8(ZERO), np.int8(ANY))
    return Axis(axis.ids, "", np.where(bad, np.int8(BAD), least))


def times(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The level of sums of products."""
    bad, zero = (one == BAD) | (other == BAD), (one == ZERO) | (other == ZERO)
    level = np.where(bad, BAD, np.where(zero, ZERO, ANY))
    return level.astype(np.int8)


def contracted(
    walk: Follower, eqn: Any, inputs: Sequence[Value], pairs: Pairs, free: list[Axis]
) -> Product:
    """Sums over pairs of axes, and what is to be noted of that.

    Args:
      walk: the walk.
      eqn: the operation.
      inputs: its two operands.
      pairs: the contracted axes of either.
      free: what is left of the axes of the second operand, then of the first.
    """
    sources = [value.source for value in inputs]
    act = -1
    if (sources[0] is None) != (sources[1] is None):
        act = 0 if sources[0] is None else 1
    missed = []
    for axes in zip(*pairs, strict=True):
        both = [value.axes[axis] for value, axis in zip(inputs, axes, strict=True)]
        missed.append((walk.contract(eqn, *both), both[max(act, 0)], axes))
    summed = tuple(axis.ids for _, axis, _ in missed if axis.ids is not None)
    made = tuple(axis.ids for axis in free if axis.ids is not None)
    leaf = inputs[1 - act].leaf if act >= 0 else None
    source = sources[1 - act] if act >= 0 else None
    record = Product(act, leaf, source, summed, made)
    if act < 0 or len(missed) != 1 or missed[0][0] is None:
        return record
    [(good, axis, axes)] = missed
    weight = inputs[1 - act].axes[axes[1 - act]]
    return record._replace(
        axis=axes[act],
        weight=weight.ids,
        missed=~good,
        constant=axis.levels[1] >= CONSTANT,
    )


@rule("dot_general")
def _dot(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Contracted and batched axes go together; the others go on."""
    pairs, batch = eqn.params["dimension_numbers"]
    one, other = inputs
    acts = any(pairs) and one.source is None and other.source is None
    axes = []
    for a, b in zip(*batch, strict=True):
        both = one.axes[a], other.axes[b]
        axis = walk.unite(both)
        if axis.ids is not None:
            if acts:
                walk.ids.mark(axis.ids, BATCHED)
            axis = Axis(axis.ids, "", times(both[0].levels, both[1].levels))
        axes.append(axis)
    if acts and any(batch):
        for value, shared in zip(inputs, batch, strict=True):
            for a, axis in enumerate(value.axes):
                if axis.ids is not None and a not in shared:
                    walk.ids.mark(axis.ids, INNER)
    rest = []
    for value, partner, gone, shared in zip(
        inputs, inputs[::-1], pairs, batch, strict=True
    ):
        own = [a for a in range(len(value.axes)) if a not in (*gone, *shared)]
        rest.append([beside(value.axes[a], partner) for a in own])
    mine = rest[0] if one.source is not None else rest[1]
    record = contracted(walk, eqn, inputs, pairs, mine)
    both = one.source is not None and other.source is not None
    value = Value(
        (*axes, *rest[0], *rest[1]),
        times(one.whole, other.whole),
        source=one.source if both else None,
    )
    return [walk.product(eqn, value, record)]


@rule("ragged_dot_general")
def _ragged(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """As a product; the rows and the groups they are sent to have to stay."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    pairs, batch = numbers.dot_dimension_numbers
    one, other, counts = inputs
    rows, groups = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    if any(batch) or not groups or set(rows) & set(pairs[0]):
        return walk.everything_stays(eqn, inputs)
    why = "`ragged_dot_general` sends rows to groups"
    for value, gone in ((one, rows), (other, groups), (counts, [0])):
        for axis in gone:
            walk.stay(value.axes[axis], why)
    left = [a for a in range(len(one.axes)) if a not in pairs[0]]
    right = [a for a in range(len(other.axes)) if a not in (*pairs[1], *groups)]
    mine = [beside(other.axes[a], one) for a in right]
    record = contracted(walk, eqn, [one, other], pairs, mine)
    axes = [Axis(None, why) if a in rows else beside(one.axes[a], other) for a in left]
    value = Value((*axes, *mine), times(one.whole, other.whole))
    return [walk.product(eqn, value, record)]
