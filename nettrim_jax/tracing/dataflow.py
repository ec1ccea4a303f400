"""Facts about every value of a flat program, found before anything runs.

A fact says which leaf a value comes from, whether it depends on the data, along which
axes it may vary, and which linear operations are upstream of it.

Knows the flat program; knows no sites.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from nettrim_jax.tracing import index_maps
from nettrim_jax.tracing.jaxprs import Flat, Literal, Op, Ref

ELEMENTWISE = frozenset(
    "add add_any sub mul div max min neg exp log rsqrt sqrt tanh logistic pow "
    "integer_pow abs sign select_n clamp convert_element_type gt ge lt le eq ne and "
    "or not square erf sin cos stop_gradient exp2 log1p expm1".split()
)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The entries of one leaf that a value consists of."""

    leaf: int
    index: np.ndarray  # [*loops, *shape] int; size one for a loop without effect


@dataclasses.dataclass(frozen=True)
class Fact:
    """The facts about one slot.

    Attributes:
      varies: per axis, whether the value may vary along it.
      data: whether it depends on the batch.
      leaves: the leaves that it depends on.
      upstream: bits of the linear operations that it depends on.
      origin: the entries of one leaf that it consists of, or ``None``.
      zero: whether it is known to be zero everywhere.
    """

    varies: tuple[bool, ...]
    data: bool = False
    leaves: frozenset[int] = frozenset()
    upstream: int = 0
    origin: Origin | None = None
    zero: bool = False


def literal(value: Any) -> Fact:
    """The fact of a constant operand."""
    return Fact(varies=(False,) * np.ndim(value), zero=bool(np.all(value == 0)))


def fact_of(ref: Ref, facts: dict[int, Fact]) -> Fact:
    """The fact of a slot or a literal."""
    return literal(ref.value) if isinstance(ref, Literal) else facts[ref]


def combine(op: Op, inputs: Sequence[Fact], flat: Flat, loops: int) -> list[Fact]:
    """The facts of an operation's outputs, from those of its inputs."""
    if op.name == "optimization_barrier":  # each operand passes by itself
        return list(inputs)
    data = any(f.data for f in inputs)
    leaves = frozenset().union(*(f.leaves for f in inputs))
    upstream = 0
    for fact in inputs:
        upstream |= fact.upstream
    origins = _origins(op, inputs, flat, loops)
    out = []
    for k, slot in enumerate(op.outputs):
        shape = flat.avals[slot].shape
        zero = (
            bool(inputs)
            and inputs[0].zero
            and (
                op.name in index_maps.SAME
                or op.name in ("broadcast_in_dim", "reshape", "squeeze", "transpose")
            )
        )
        out.append(
            Fact(
                varies=_varies(op, inputs, flat, shape),
                data=data,
                leaves=leaves,
                upstream=upstream,
                origin=origins[k] if origins else None,
                zero=zero,
            )
        )
    return out


def _origins(
    op: Op, inputs: Sequence[Fact], flat: Flat, loops: int
) -> list[Origin] | None:
    if op.name == "concatenate":
        return _joined(op, inputs, flat, loops)
    if not inputs or inputs[0].origin is None:
        return None
    origin = inputs[0].origin
    if any(f.origin is not None or f.data or f.leaves for f in inputs[1:]):
        return None
    moved = index_maps.move(op.name, op.params, origin.index, loops)
    return None if moved is None else [Origin(origin.leaf, index) for index in moved]


def _joined(
    op: Op, inputs: Sequence[Fact], flat: Flat, loops: int
) -> list[Origin] | None:
    """The origin of pieces of one leaf, and constants, that are concatenated."""
    origins = [f.origin for f in inputs if f.origin is not None]
    if len({origin.leaf for origin in origins}) != 1:
        return None
    if any(f.origin is None and (f.data or f.leaves) for f in inputs):
        return None
    parts = [
        flat.aval(ref).shape if f.origin is None else f.origin.index
        for ref, f in zip(op.inputs, inputs, strict=True)
    ]
    index = index_maps.join(parts, op.params["dimension"], loops)
    return [Origin(origins[0].leaf, index)]


def _varies(
    op: Op, inputs: Sequence[Fact], flat: Flat, shape: tuple[int, ...]
) -> tuple[bool, ...]:
    may = tuple(size > 1 for size in shape)
    if op.name in ELEMENTWISE and all(len(f.varies) in (0, len(shape)) for f in inputs):
        full = [f.varies for f in inputs if f.varies]
        return tuple(m and any(v[a] for v in full) for a, m in enumerate(may))
    if not inputs or isinstance(op.inputs[0], Literal):
        first = (False,) * len(inputs[0].varies) if inputs else ()
    else:
        first = inputs[0].varies
    if op.name == "broadcast_in_dim":
        out = [False] * len(shape)
        for axis, at in enumerate(op.params["broadcast_dimensions"]):
            out[at] = first[axis]
        return tuple(v and m for v, m in zip(out, may, strict=True))
    if op.name in ("reshape", "squeeze", "transpose", *index_maps.SAME) and inputs:
        before = flat.aval(op.inputs[0]).shape
        labels = index_maps.relabel(op.name, op.params, first, before)
        if labels is not None:  # "one" and "mixed" may vary, as far as is known
            return tuple(
                m and label is not False for m, label in zip(may, labels, strict=True)
            )
    return may
