"""Facts about every value of a flat program, found before anything runs.

A fact says which leaf a value comes from and by which constant factors, whether it
depends on the data, along which axes it may vary, and which linear operations are
upstream of it.

Knows the flat program; knows no sites.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from nettrim_jax.tracing import constants, index_maps
from nettrim_jax.tracing.constants import Constant
from nettrim_jax.tracing.jaxprs import Flat, Literal, Op, Ref

ELEMENTWISE = frozenset(
    "add add_any sub mul div max min neg exp log rsqrt sqrt tanh logistic pow "
    "integer_pow abs sign select_n clamp convert_element_type gt ge lt le eq ne and "
    "or not square erf sin cos stop_gradient exp2 log1p expm1".split()
)


# operations that hand infinities on, and do not only make them
ENDLESS = frozenset(
    "add add_any sub mul div max min neg select_n convert_element_type reshape squeeze "
    "transpose broadcast_in_dim slice dynamic_slice gather concatenate pad rev copy "
    "expand_dims stop_gradient".split()
)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The entries of one leaf that a value consists of, times constant factors."""

    leaf: int
    index: np.ndarray  # [*loops, *shape] int; size one for a loop without effect
    factor: np.ndarray | None = None  # as index, floating; None if all are one

    def repeated(self, loops: int) -> "Origin":
        """The same entries at every step of one more loop, within ``loops`` others."""
        index = np.expand_dims(self.index, loops)
        factor = self.factor
        return Origin(
            self.leaf, index, None if factor is None else np.expand_dims(factor, loops)
        )


@dataclasses.dataclass(frozen=True)
class Fact:
    """The facts about one slot.

    Attributes:
      varies: per axis, whether the value may vary along it.
      data: whether it depends on the batch.
      leaves: the leaves that it depends on.
      upstream: bits of the linear operations that it depends on.
      origin: the entries of one leaf that it consists of, or ``None``.
      constant: its value, if it depends on neither a leaf nor the batch nor the step of
        a loop.
      endless: whether it may have infinities that are meant.
    """

    varies: tuple[bool, ...]
    data: bool = False
    leaves: frozenset[int] = frozenset()
    upstream: int = 0
    origin: Origin | None = None
    constant: Constant | None = None
    endless: bool = False


def literal(value: Any) -> Fact:
    """The fact of a constant operand."""
    return Fact(
        varies=(False,) * np.ndim(value),
        constant=Constant(value),
        endless=bool(np.any(abs(value) == np.inf)),
    )


def fact_of(ref: Ref, facts: Mapping[int, Fact]) -> Fact:
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
    endless = op.name == "log" or (
        op.name in ENDLESS and any(f.endless for f in inputs)
    )
    origins = _origins(op, inputs, flat, loops)
    known = constants.results(op, [f.constant for f in inputs])
    out = []
    for k, slot in enumerate(op.outputs):
        shape = flat.avals[slot].shape
        out.append(
            Fact(
                varies=_varies(op, inputs, flat, shape),
                data=data,
                leaves=leaves,
                upstream=upstream,
                origin=origins[k] if origins else None,
                constant=known[k],
                endless=endless,
            )
        )
    return out


def _origins(
    op: Op, inputs: Sequence[Fact], flat: Flat, loops: int
) -> list[Origin] | None:
    if op.name == "concatenate":
        return _joined(op, inputs, flat, loops)
    if op.name in ("mul", "div", "neg"):
        return _scaled(op, inputs, flat, loops)
    if not inputs or inputs[0].origin is None:
        return None
    origin = inputs[0].origin
    if any(f.origin is not None or f.data or f.leaves for f in inputs[1:]):
        return None
    moved = index_maps.move(op.name, op.params, origin.index, loops)
    if moved is None:
        return None
    if origin.factor is None:
        return [Origin(origin.leaf, index) for index in moved]
    factors = index_maps.move(op.name, op.params, origin.factor, loops)
    both = zip(moved, factors or (), strict=True)
    return [Origin(origin.leaf, index, factor) for index, factor in both]


def _scaled(
    op: Op, inputs: Sequence[Fact], flat: Flat, loops: int
) -> list[Origin] | None:
    """The origin of a leaf's entries times a constant."""
    sides = [i for i, f in enumerate(inputs) if f.origin is not None]
    if len(sides) != 1 or (op.name == "div" and sides[0]):
        return None
    origin, shape = inputs[sides[0]].origin, flat.avals[op.outputs[0]].shape
    assert origin is not None
    if op.name == "neg":
        value = np.asarray(-1.0)
    else:
        constant = inputs[1 - sides[0]].constant
        given = None if constant is None else constant.value
        if given is None or not jnp.issubdtype(given.dtype, jnp.floating):
            return None
        value = given.astype(np.float64)
        with np.errstate(divide="ignore"):
            value = 1 / value if op.name == "div" else value
    if not np.isfinite(value).all() or origin.index.shape[loops:] != shape:
        return None
    if value.ndim == 0 and value == 1:
        return [origin]
    factor = np.ones(()) if origin.factor is None else origin.factor
    full = (*origin.index.shape[:loops], *shape)
    return [Origin(origin.leaf, origin.index, np.broadcast_to(factor * value, full))]


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
    axis = op.params["dimension"]
    index = index_maps.join(parts, axis, loops)
    if all(origin.factor is None for origin in origins):
        return [Origin(origins[0].leaf, index)]
    factors: list[Any] = [
        part if f.origin is None else _factor(f.origin)
        for part, f in zip(parts, inputs, strict=True)
    ]
    return [Origin(origins[0].leaf, index, index_maps.join(factors, axis, loops))]


def _factor(origin: Origin) -> np.ndarray:
    one = np.ones(()) if origin.factor is None else origin.factor
    return np.broadcast_to(one, origin.index.shape)


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
