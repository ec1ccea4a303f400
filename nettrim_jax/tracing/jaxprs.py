"""A jaxpr as a flat program, with calls inlined, control flow kept and numbered slots.

``flatten`` turns a jaxpr into blocks of operations on slots, however often ``apply_fn``
was wrapped in ``jit``, ``remat`` or a custom derivative. ``evaluate`` runs them and
calls a visitor after chosen operations, which captures activations without patching
modules.

Knows jaxprs; knows no layers and no solver.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core

from nettrim_jax.tracing import primitives

# calls that are replaced by their body; all others but control flow stay opaque
CALLS = frozenset(
    "jit pjit closed_call core_call call remat remat2 checkpoint custom_jvp_call "
    "custom_vjp_call custom_vjp_call_jaxpr custom_lin".split()
)
BODY_NAMES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
# params of control flow that ``Op.blocks`` has, too
BODIES = frozenset(["jaxpr", "cond_jaxpr", "body_jaxpr", "branches"])


@dataclasses.dataclass(frozen=True, eq=False)
class Literal:
    """A constant operand."""

    value: Any


Ref = int | Literal


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
    """One operation; ``blocks`` are the bodies of a control-flow operation."""

    id: int
    primitive: Any
    params: Mapping[str, Any]
    inputs: tuple[Ref, ...]
    outputs: tuple[int, ...]
    blocks: "tuple[Block, ...]" = ()

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.primitive.name


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A sequence of operations from its inputs to its outputs."""

    inputs: tuple[int, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Ref, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Flat:
    """A flat program; those that compute the same are equal.

    Attributes:
      block: the main block; its inputs are the arguments' leaves.
      consts: slots of the arrays closed over, whose values are given to every run.
      avals: shape and dtype of every slot.
      signature: equal for programs that compute the same.
    """

    block: Block
    consts: tuple[int, ...]
    avals: Mapping[int, Any]
    signature: str

    def __hash__(self) -> int:
        return hash(self.signature)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Flat) and self.signature == other.signature

    def aval(self, ref: Ref) -> Any:
        """Shape and dtype of a slot or a literal."""
        if isinstance(ref, Literal):
            value = np.asarray(ref.value)
            return jax.ShapeDtypeStruct(value.shape, value.dtype)
        return self.avals[ref]


def flatten(closed: Any) -> tuple[Flat, list[Any]]:
    """The flat program of a closed jaxpr, and the values of its constants."""
    builder = _Builder()
    block = builder.block(closed.jaxpr, closed.consts)
    parts: list[str] = []
    _sign(block, builder.avals, parts)
    for slot in builder.consts:
        parts.append(f"const {slot} {builder.avals[slot]}")
    signature = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    flat = Flat(block, tuple(builder.consts), builder.avals, signature)
    return flat, list(builder.consts.values())


class _Builder:
    def __init__(self):
        self.avals: dict[int, Any] = {}
        self.consts: dict[int, Any] = {}
        self.op_count = 0

    def slot(self, aval: Any) -> int:
        self.avals[len(self.avals)] = aval
        return len(self.avals) - 1

    def block(self, jaxpr: Any, consts: Sequence[Any]) -> Block:
        env: dict[Any, Ref] = {}
        self.bind_consts(env, jaxpr, consts)
        inputs = tuple(self.slot(var.aval) for var in jaxpr.invars)
        env.update(zip(jaxpr.invars, inputs, strict=True))
        ops: list[Op] = []
        outputs = self.run(jaxpr, env, ops)
        return Block(inputs, tuple(ops), outputs)

    def bind_consts(self, env: dict[Any, Ref], jaxpr: Any, consts: Any) -> None:
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            slot = env[var] = self.slot(var.aval)
            self.consts[slot] = value

    def run(self, jaxpr: Any, env: dict[Any, Ref], ops: list[Op]) -> tuple[Ref, ...]:
        def read(atom: Any) -> Ref:
            is_literal = isinstance(atom, jex_core.Literal)
            return Literal(atom.val) if is_literal else env[atom]

        for eqn in jaxpr.eqns:
            inputs = tuple(read(atom) for atom in eqn.invars)
            body = called(eqn)
            if body is not None:  # a call: its body runs in place
                inner: dict[Any, Ref] = {}
                self.bind_consts(inner, body.jaxpr, body.consts)
                inner.update(zip(body.jaxpr.invars, inputs, strict=True))
                outputs = self.run(body.jaxpr, inner, ops)
                env.update(zip(eqn.outvars, outputs, strict=True))
                continue
            blocks = tuple(self.block(b.jaxpr, b.consts) for b in branches(eqn))
            outputs = tuple(self.slot(var.aval) for var in eqn.outvars)
            env.update(zip(eqn.outvars, outputs, strict=True))
            op = Op(self.op_count, eqn.primitive, eqn.params, inputs, outputs, blocks)
            self.op_count += 1
            ops.append(op)
        return tuple(read(atom) for atom in jaxpr.outvars)


def _close(jaxpr: Any) -> Any:
    if isinstance(jaxpr, jex_core.ClosedJaxpr):
        return jaxpr
    return None if jaxpr.constvars else jex_core.ClosedJaxpr(jaxpr, ())


def called(eqn: Any) -> Any:
    """The body of a call that may run in its place; None for other operations."""
    if eqn.primitive.name not in CALLS:
        avals = [var.aval for var in eqn.invars]
        return primitives.older(eqn.primitive.name, eqn.params, avals)
    for name in BODY_NAMES:
        if name in eqn.params and hasattr(eqn.params[name], "eqns"):
            return _close(eqn.params[name])
    return None


def branches(eqn: Any) -> tuple[Any, ...]:
    """The bodies of control flow, in the order of ``Op.blocks``."""
    names = {"scan": ["jaxpr"], "while": ["cond_jaxpr", "body_jaxpr"]}
    if eqn.primitive.name == "cond":
        return tuple(eqn.params["branches"])
    return tuple(eqn.params[name] for name in names.get(eqn.primitive.name, []))


def _sign(block: Block, avals: Mapping[int, Any], parts: list[str]) -> None:
    def ref(item: Ref) -> str:
        return text_of(item.value) if isinstance(item, Literal) else f"%{item}"

    parts.append("in " + " ".join(f"{ref(i)}:{avals[i]}" for i in block.inputs))
    for op in block.ops:
        outputs = " ".join(f"{ref(o)}:{avals[o]}" for o in op.outputs)
        inputs = " ".join(map(ref, op.inputs))
        skip = BODIES if op.blocks else ()
        kept = sorted(k for k in op.params if k not in skip)
        params = ",".join(f"{k}={text_of(op.params[k])}" for k in kept)
        parts.append(f"{outputs} = {op.name}[{params}] {inputs}")
        for inner in op.blocks:
            _sign(inner, avals, parts)
    parts.append("out " + " ".join(map(ref, block.outputs)))


def text_of(value: Any) -> str:
    """A value as text, equal only for equal values."""
    # repr elides the middle of large arrays, which would make unequal programs equal
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        return f"{array.dtype}{array.shape}{digest}"
    if isinstance(value, tuple | list):
        return "(" + ",".join(map(text_of, value)) + ")"
    return repr(value)


Visitor = Callable[[Op, Callable[[Ref], Any], tuple[Any, ...]], Any]


def apply(op: Op, *args: Any) -> list[Any]:
    """Runs one operation."""
    return bind(op.primitive, op.params, args)


def bind(primitive: Any, params: Mapping[str, Any], args: Sequence[Any]) -> list[Any]:
    """The results of a primitive."""
    bound = primitive.get_bind_params(params)
    subfuns, params = bound if isinstance(bound, tuple) else ((), bound)
    out = primitive.bind(*subfuns, *args, **params)
    return list(out) if primitive.multiple_results else [out]


def _nothing_seen(*_: Any) -> None:
    """The visitor of a run without visits."""


def evaluate(
    flat: Flat,
    consts: Sequence[Any],
    inputs: Sequence[Any],
    visits: Collection[int] = (),
    visit: Visitor = _nothing_seen,
    nudges: Mapping[int, Any] = MappingProxyType({}),
) -> tuple[list[Any], dict[int, Any]]:
    """Runs the program and collects the visitor's results.

    Args:
      flat: the program.
      consts: values of ``flat.consts``.
      inputs: values of ``flat.block.inputs``.
      visits: ids of the operations after which ``visit(op, read, steps)`` is called;
        ``read`` gives the value of any slot known by then, ``steps`` the counters
        of the enclosing loops.
      visit: returns a pytree of arrays.
      nudges: by id of an operation, an array that is added to its first result; within
        a ``scan`` it has one more leading axis per loop.

    Returns:
      The outputs, and ``op.id -> pytree``. Within a ``scan`` the arrays of an operation
      have one more leading axis per loop; within a branch of ``cond`` that is not taken
      they are zero.
    """
    env = dict(zip(flat.consts, consts, strict=True))
    env.update(zip(flat.block.inputs, inputs, strict=True))
    return _Run(visits, visit, nudges).block(flat.block, env, ())


def run_block(
    block: Block,
    env: dict[int, Any],
    visits: Collection[int] = (),
    visit: Visitor = _nothing_seen,
) -> dict[int, Any]:
    """Runs a block on ``env``, which it fills; returns the visitor's results."""
    return _Run(visits, visit, {}).block(block, env, ())[1]


def slots_read(op: Op) -> set[int]:
    """The slots that an operation needs, those of its inner blocks included."""
    read = {ref for ref in op.inputs if not isinstance(ref, Literal)}
    for block in op.blocks:
        made = {*block.inputs, *(slot for o in block.ops for slot in o.outputs)}
        inner = {ref for ref in block.outputs if not isinstance(ref, Literal)}
        for o in block.ops:
            inner |= slots_read(o)
        read |= inner - made
    return read


def ids_within(op: Op) -> list[int]:
    """The id of an operation, then those of all operations in its blocks."""
    inner = [i for block in op.blocks for o in block.ops for i in ids_within(o)]
    return [op.id, *inner]


def scan_counts(op: Op) -> tuple[int, int]:
    """The number of constant and of carried operands of a ``scan``."""
    if "num_consts" in op.params:
        return op.params["num_consts"], op.params["num_carry"]
    consts, carry, _ = op.params["ft_in"].unpack()  # since jax 0.12
    return len(consts), len(carry)


@dataclasses.dataclass(frozen=True)
class _Run:
    visits: Collection[int]
    visit: Visitor
    nudges: Mapping[int, Any]

    def block(
        self, block: Block, env: dict[int, Any], steps: tuple[Any, ...]
    ) -> tuple[list[Any], dict[int, Any]]:
        def read(ref: Ref) -> Any:
            return ref.value if isinstance(ref, Literal) else env[ref]

        seen: dict[int, Any] = {}
        for op in block.ops:
            args = [read(ref) for ref in op.inputs]
            if op.name in ("scan", "cond") and self.visited(op):
                run = self.scan if op.name == "scan" else self.cond
                outputs, inner = run(op, args, env, steps)
                seen.update(inner)
            else:
                outputs = apply(op, *args)
            if op.id in self.nudges:
                outputs = [outputs[0] + self.nudges[op.id], *outputs[1:]]
            env.update(zip(op.outputs, outputs, strict=True))
            if op.id in self.visits:
                seen[op.id] = self.visit(op, read, steps)
        return [read(ref) for ref in block.outputs], seen

    def visited(self, op: Op) -> bool:
        return any(i in self.visits or i in self.nudges for i in ids_within(op)[1:])

    def body(self, block: Block, env: dict[int, Any], args: Any, steps: Any) -> Any:
        inner = {**env, **dict(zip(block.inputs, args, strict=True))}
        return self.block(block, inner, steps)

    def scan(self, op: Op, args: list[Any], env: dict[int, Any], steps: Any) -> Any:
        first, carried = scan_counts(op)
        length = op.params["length"]
        consts, carry = args[:first], args[first : first + carried]

        within = set(ids_within(op)) & set(self.nudges)

        def body(carry: Any, step_xs: Any) -> Any:
            step, xs, nudges = step_xs
            inner = [*consts, *carry, *xs]
            run = dataclasses.replace(self, nudges=nudges)
            outputs, seen = run.body(op.blocks[0], env, inner, (*steps, step))
            return outputs[:carried], (outputs[carried:], seen)

        nudges = {i: self.nudges[i] for i in within}
        xs = (jax.numpy.arange(length), args[first + carried :], nudges)
        reverse = op.params["reverse"]
        carry, (ys, seen) = jax.lax.scan(body, carry, xs, length, reverse)
        return [*carry, *ys], seen

    def cond(self, op: Op, args: list[Any], env: dict[int, Any], steps: Any) -> Any:
        def run(block: Block, operands: list[Any]) -> Any:
            return self.body(block, env, operands, steps)

        index, operands = args[0], args[1:]
        shapes = [
            jax.eval_shape(functools.partial(run, block), operands)[1]
            for block in op.blocks
        ]

        def branch(i: int, operands: list[Any]) -> Any:
            outputs, seen = run(op.blocks[i], operands)
            for other, shape in enumerate(shapes):
                if other != i:
                    seen |= jax.tree.map(
                        lambda s: jax.numpy.zeros(s.shape, s.dtype), shape
                    )
            return outputs, seen

        branches = [functools.partial(branch, i) for i in range(len(op.blocks))]
        # a two-way cond has a boolean index
        return jax.lax.switch(jax.numpy.int32(index), branches, operands)
