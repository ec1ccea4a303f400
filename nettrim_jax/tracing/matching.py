"""Finds the outputs of one flat program among the values of another.

Two values are the same if the same operations made them of the same inputs, whatever
the numbers of their slots. So the outputs of a network are found in the program of a
loss that calls it.

Knows flat programs; knows no layers and no solver.
"""

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

from nettrim_jax._trees import known
from nettrim_jax.tracing import jaxprs
from nettrim_jax.tracing.jaxprs import BODIES, Block, Flat, Literal, Op, Ref

Names = dict[int, str]  # by slot, equal for values that are computed alike


def names_of(flat: Flat, consts: Sequence[Any]) -> Names:
    """The name of every slot of the main block; inputs are named by their position."""
    pairs = zip(flat.consts, consts, strict=True)
    names = {
        # what JAX is tracing has no values, and is the same only if it is the same
        slot: jaxprs.text_of(value) if known(value) else f"traced {id(value)}"
        for slot, value in pairs
    }
    names |= {slot: f"input {i}" for i, slot in enumerate(flat.block.inputs)}
    _name(flat.block, names, 0)
    return names


def _name(block: Block, names: Names, depth: int) -> None:
    for op in block.ops:
        parts = [op.name]
        skip = BODIES if op.blocks else ()
        for key in sorted(key for key in op.params if key not in skip):
            parts.append(f"{key}={jaxprs.text_of(op.params[key])}")
        parts += [_of(ref, names) for ref in op.inputs]
        for at, inner in enumerate(op.blocks):
            within = dict(names)
            for i, slot in enumerate(inner.inputs):
                within[slot] = f"argument {depth} {at} {i}"
            _name(inner, within, depth + 1)
            parts += [f"body {at}", *(_of(ref, within) for ref in inner.outputs)]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        names.update({slot: f"{digest} {i}" for i, slot in enumerate(op.outputs)})


def _of(ref: Ref, names: Names) -> str:
    return jaxprs.text_of(ref.value) if isinstance(ref, Literal) else names[ref]


def cut_of(flat: Flat, names: Names, wanted: Collection[str]) -> tuple[Op, ...]:
    """The last operations before the outputs whose first results have these names.

    None of them needs another one: what is made of a wanted value is no cut of its own.
    """
    made = {slot: op for op in flat.block.ops for slot in op.outputs}

    def is_wanted(op: Op) -> bool:
        return bool(op.outputs) and names[op.outputs[0]] in wanted

    def before(slots: Collection[int], past: bool) -> dict[int, Op]:
        """The operations that slots need, ``past`` the wanted ones or up to these."""
        found: dict[int, Op] = {}
        stack = list(slots)
        while stack:
            op = made.get(stack.pop())
            if op is not None and op.id not in found:
                found[op.id] = op
                if past or not is_wanted(op):
                    stack.extend(jaxprs.slots_read(op))
        return found

    outputs = [ref for ref in flat.block.outputs if not isinstance(ref, Literal)]
    first = {i: op for i, op in before(outputs, False).items() if is_wanted(op)}
    alone = (
        i
        for i, op in first.items()
        if not first.keys() & before(jaxprs.slots_read(op), True).keys()
    )
    return tuple(first[i] for i in sorted(alone))


def around(flat: Flat, cut: Collection[int], inputs: Collection[int]) -> set[int]:
    """Which of some inputs, by position, reach an output past the operations ``cut``.

    Args:
      flat: the program.
      cut: ids of operations, whose results count as independent of all inputs.
      inputs: positions of inputs.
    """
    reach = {flat.block.inputs[i]: {i} for i in inputs}
    for op in flat.block.ops:
        found: set[int] = set()
        if op.id not in cut:
            found = found.union(*(reach.get(s, ()) for s in jaxprs.slots_read(op)))
        reach |= dict.fromkeys(op.outputs, found)
    outputs = [ref for ref in flat.block.outputs if not isinstance(ref, Literal)]
    return set().union(*(reach.get(ref, ()) for ref in outputs))
