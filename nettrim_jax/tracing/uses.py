"""Every use of every leaf by a program: linear operations, and all others.

One walk over the flat program carries a fact per slot forward. It records where a leaf
is the matrix of a linear operation and, in words, how else it is used.

Knows the flat program; knows no solver and no framework's modules.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from nettrim_jax.results import BIAS
from nettrim_jax.tracing import dataflow as facts_
from nettrim_jax.tracing import epilogue
from nettrim_jax.tracing.constants import Constant
from nettrim_jax.tracing.dataflow import ELEMENTWISE, Fact, Origin
from nettrim_jax.tracing.epilogue import Chain
from nettrim_jax.tracing.folding import LINEAR, Folding, fold
from nettrim_jax.tracing.jaxprs import Block, Flat, Op, Ref, scan_counts
from nettrim_jax.typing import LeafPath

REASONS = {
    "gather": "looked up by index, as an embedding",
    "add": "added to other values, which is no linear operation",
    "mul": "multiplied entry by entry, which is no linear operation",
    "joined": "constants are scattered among its entries",
    "empty": "none of its entries is used: an axis has no length",
    "while": "used inside a while loop, whose number of steps is not known",
    "no data": "multiplied with values that do not depend on the batch",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One linear operation on a matrix of a leaf.

    Attributes:
      op: the operation.
      folding: its layout as matrices.
      act: slot of its activations.
      weight: slot of its weight.
      chain: the operations that follow it.
      visit: id of the operation after which all of these values are known.
      loops: lengths of the enclosing scans.
      lanes: for each of them, whether each step has its own matrix.
      mark: its bit among all linear operations.
      upstream: bits of those on which its activations or ``t`` depend.
      live: the inputs and the units that are not constants joined to the leaf;
        ``None`` if there are no such constants.
    """

    op: Op
    folding: Folding
    act: Ref
    weight: Ref
    chain: Chain
    visit: int
    loops: tuple[int, ...]
    lanes: tuple[bool, ...]
    mark: int
    upstream: int
    live: tuple[np.ndarray, np.ndarray] | None

    @property
    def rows(self) -> int:
        """Rows that one batch gives each lane."""
        shared = [n for n, own in zip(self.loops, self.lanes, strict=True) if not own]
        return self.folding.rows * int(np.prod(shared, dtype=int))


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """A use of a leaf: a linear operation, or another one with its reason.

    A ``lookup`` takes rows by index; the leaf may be pruned in spite of it.
    """

    leaf: int
    reason: str | None
    use: Use | None = None
    index: np.ndarray | None = None  # [*loops, b, d_in, d_out]
    factor: np.ndarray | None = None  # as index, what its entries are multiplied by
    loops: int = 0
    lookup: bool = False


class Walk:
    """The facts about every slot and, in ``seen``, every use of every leaf.

    Args:
      flat: the program; its first inputs are the leaves.
      paths: the leaves' paths.
      consts: the values of ``flat.consts``.
      endless: slots of constants and inputs that are known to have infinities.
    """

    def __init__(
        self,
        flat: Flat,
        paths: tuple[LeafPath, ...],
        consts: Sequence[Any],
        endless: frozenset[int] = frozenset(),
    ):
        self.flat, self.paths = flat, paths
        self.facts: dict[int, Fact] = {}
        self.seen: list[Seen] = []
        self.marks: dict[int, int] = {}  # linear op -> its bit in Fact.upstream
        for slot, value in zip(flat.consts, consts, strict=True):
            varies = tuple(size > 1 for size in flat.avals[slot].shape)
            self.facts[slot] = Fact(varies, constant=Constant(value))
        for i, slot in enumerate(flat.block.inputs):
            aval = flat.avals[slot]
            varies = tuple(size > 1 for size in aval.shape)
            if i < len(paths):
                index = np.arange(aval.size, dtype=np.int32).reshape(aval.shape)
                origin = Origin(i, index)
                self.facts[slot] = Fact(varies, False, frozenset([i]), 0, origin)
            else:
                self.facts[slot] = Fact(varies, data=True)
        for slot in endless:
            self.facts[slot] = dataclasses.replace(self.facts[slot], endless=True)
        self._block(flat.block, (), True)
        for ref in flat.block.outputs:
            self._note(ref, "returned by apply_fn")

    def fact(self, ref: Ref) -> Fact:
        """The fact of a slot or a literal."""
        return facts_.fact_of(ref, self.facts)

    def _note(self, ref: Ref, reason: str, lookup: bool = False) -> None:
        origin = self.fact(ref).origin
        if origin is not None:
            self.seen.append(Seen(origin.leaf, reason, lookup=lookup))

    def _block(self, block: Block, loops: tuple[int, ...], known: bool) -> None:
        pending = []
        for op in block.ops:
            if op.name in ("scan", "cond", "while") and op.blocks:
                self._control[op.name](self, op, loops, known)
                continue
            inputs = [self.fact(ref) for ref in op.inputs]
            outputs = facts_.combine(op, inputs, self.flat, len(loops))
            if op.name in LINEAR and any(f.origin is not None for f in inputs):
                self.marks[op.id] = 1 << len(self.marks)
                outputs = [
                    dataclasses.replace(f, upstream=f.upstream | self.marks[op.id])
                    for f in outputs
                ]
                pending.append(op)
            elif all(f.origin is None for f in outputs):
                for ref, fact in zip(op.inputs, inputs, strict=True):
                    why = self._why(op, fact, inputs, len(loops))
                    self._note(ref, why, op.name == "gather")
            self.facts.update(zip(op.outputs, outputs, strict=True))
        read_by = epilogue.readers(block)
        for op in pending:
            self._linear(block, read_by, op, loops, known)

    def _why(self, op: Op, fact: Fact, inputs: list[Fact], loops: int) -> str:
        others = frozenset().union(*(f.leaves for f in inputs)) - fact.leaves
        if others and not any(f.data for f in inputs):
            names = ", ".join(self.paths[leaf] for leaf in sorted(others))
            return f"combined with {names} by `{op.name}` before it is used"
        kind = f"{BIAS} or norm: " if _is_bias(op, fact, loops) else ""
        why = REASONS.get(op.name, "used by an operation that is not linear")
        return f"{kind}{why} (`{op.name}`)"

    def _linear(
        self,
        block: Block,
        read_by: dict[int, list[Op]],
        op: Op,
        loops: tuple[int, ...],
        known: bool,
    ) -> None:
        sides = [i for i in (0, 1) if self.fact(op.inputs[i]).origin is not None]
        if len(sides) == 2:
            for ref in op.inputs:
                self._note(ref, f"multiplied with another leaf (`{op.name}`)")
            return
        side = sides[0]
        origin = self.fact(op.inputs[side]).origin
        assert origin is not None
        if not known:
            self._note(op.inputs[side], REASONS["while"])
            return
        lhs, rhs = (self.flat.aval(ref) for ref in op.inputs[:2])
        folding = fold(op, side, lhs, rhs, self.flat.avals[op.outputs[0]])
        if isinstance(folding, str):
            self._note(op.inputs[side], folding)
            return
        avals, facts = self.flat.avals, self.facts
        mark = self.marks[op.id]
        chain = epilogue.follow(block, read_by, folding, facts, mark, avals)
        visit = chain.ops[-1].id if chain.ops else op.id
        index = folding.weight(origin.index, len(loops))
        if not index.size:
            self._note(op.inputs[side], REASONS["empty"])
            return
        factor = None
        if origin.factor is not None:
            factor = folding.weight(origin.factor, len(loops))
        live = None
        if index.min(initial=0) < 0:
            live = _live(index)
            index = index[..., live[0], :][..., live[1]]
            if factor is not None:
                factor = factor[..., live[0], :][..., live[1]]
            if index.min(initial=0) < 0 or not index.size:
                self._note(op.inputs[side], REASONS["joined"])
                return
        lanes = tuple(size != 1 for size in index.shape[: len(loops)])
        upstream = 0
        for ref in (*op.inputs, *(ref for step in chain.ops for ref in step.inputs)):
            upstream |= self.fact(ref).upstream
        if chain.scales and any(
            n > 1 for n, own in zip(loops, lanes, strict=True) if not own
        ):
            # the steps share one matrix, but their scales may differ
            chain = epilogue.whole(chain)
            visit = op.id
        use = Use(
            op=op,
            folding=folding,
            act=op.inputs[1 - side],
            weight=op.inputs[side],
            chain=chain,
            visit=visit,
            loops=loops,
            lanes=lanes,
            mark=mark,
            upstream=upstream & ~mark,
            live=live,
        )
        self.seen.append(Seen(origin.leaf, None, use, index, factor, len(loops)))

    # control flow: facts about the inputs and the outputs of bodies

    def _scan(self, op: Op, loops: tuple[int, ...], known: bool) -> None:
        first, carried = scan_counts(op)
        body, length = op.blocks[0], op.params["length"]
        inputs = [self.fact(ref) for ref in op.inputs]
        everything = self._union(inputs)
        for i, (slot, fact) in enumerate(zip(body.inputs, inputs, strict=True)):
            constant = i < first or (
                first <= i < first + carried and body.outputs[i - first] == slot
            )
            shape = self.flat.avals[slot].shape
            varies = tuple(size > 1 for size in shape)
            origin = fact.origin
            if constant:  # the same at every step
                varies = fact.varies
                if origin is not None:
                    origin = origin.repeated(len(loops))
            elif i < first + carried:
                self._note(op.inputs[i], "carried and changed by a scan")
                origin = None
                fact = dataclasses.replace(fact, data=everything.data)
            self.facts[slot] = dataclasses.replace(
                fact,
                varies=varies,
                origin=origin,
                constant=fact.constant if constant else None,
            )
        self._block(body, (*loops, length), known)
        self._outputs(op, body, everything)

    def _cond(self, op: Op, loops: tuple[int, ...], known: bool) -> None:
        inputs = [self.fact(ref) for ref in op.inputs]
        everything = self._union(inputs)
        for body in op.blocks:
            self.facts.update(zip(body.inputs, inputs[1:], strict=True))
            self._block(body, loops, known)
        for body in op.blocks:
            everything = self._outputs(op, body, everything)

    def _while(self, op: Op, loops: tuple[int, ...], known: bool) -> None:
        n_cond, n_body = op.params["cond_nconsts"], op.params["body_nconsts"]
        inputs = [self.fact(ref) for ref in op.inputs]
        everything = self._union(inputs)
        carry = inputs[n_cond + n_body :]
        for body, consts in zip(
            op.blocks, (inputs[:n_cond], inputs[n_cond : n_cond + n_body]), strict=True
        ):
            for i, (slot, fact) in enumerate(
                zip(body.inputs, [*consts, *carry], strict=True)
            ):
                changed = i >= len(consts) and (
                    len(body.outputs) != len(carry)
                    or body.outputs[i - len(consts)] != slot
                )
                if changed:
                    shape = self.flat.avals[slot].shape
                    fact = dataclasses.replace(
                        everything, varies=tuple(size > 1 for size in shape)
                    )
                self.facts[slot] = fact
            self._block(body, loops, False)
        for i in range(len(carry)):
            if op.blocks[1].outputs[i] != op.blocks[1].inputs[n_body + i]:
                self._note(op.inputs[n_cond + n_body + i], "changed by a while loop")
        self._outputs(op, op.blocks[1], everything)

    _control = {"scan": _scan, "cond": _cond, "while": _while}

    def _union(self, facts: list[Fact]) -> Fact:
        upstream = 0
        for fact in facts:
            upstream |= fact.upstream
        leaves = frozenset().union(*(f.leaves for f in facts))
        endless = any(f.endless for f in facts)
        data = any(f.data for f in facts)
        return Fact((), data, leaves, upstream, endless=endless)

    def _outputs(self, op: Op, body: Block, everything: Fact) -> Fact:
        """Lets all outputs of a loop or branch depend on all inputs and on the body."""
        for ref in body.outputs:
            if ref not in body.inputs:
                self._note(ref, f"returned from inside a `{op.name}`")
        inner = [self.fact(ref) for ref in body.outputs]
        everything = self._union([everything, *inner])
        for slot in op.outputs:
            shape = self.flat.avals[slot].shape
            varies = tuple(size > 1 for size in shape)
            self.facts[slot] = dataclasses.replace(everything, varies=varies)
        return everything


def _is_bias(op: Op, fact: Fact, loops: int) -> bool:
    """Whether a leaf is added or multiplied, and varies along one axis at most."""
    if op.name not in ELEMENTWISE or fact.origin is None:
        return False
    index = fact.origin.index
    axes = zip(index.shape[loops:], index.strides[loops:], strict=True)
    return sum(size > 1 and step != 0 for size, step in axes) <= 1


def _live(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inputs and the units with at least one entry of the leaf."""
    own = index >= 0
    axes = tuple(range(index.ndim))
    return (
        np.flatnonzero(own.any(axis=(*axes[:-2], axes[-1]))),
        np.flatnonzero(own.any(axis=axes[:-1])),
    )
