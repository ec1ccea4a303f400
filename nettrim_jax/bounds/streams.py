"""The trained and the pruned network's values of one batch, side by side.

Knows networks; knows no bounds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nettrim_jax.bounds.lipschitz import floating
from nettrim_jax.tracing import jaxprs
from nettrim_jax.tracing.jaxprs import Literal, Op, Ref
from nettrim_jax.tracing.sites import Network
from nettrim_jax.typing import Array, wide


class Streams:
    """The trained and the pruned value of every slot, and which of them can differ."""

    def __init__(
        self,
        network: Network,
        consts: Sequence[Array],
        old: Sequence[Array],
        new: Sequence[Array],
        batch: Sequence[Array],
        changed: frozenset[int],
    ):
        self.network, block = network, network.flat.block
        slots = [*network.flat.consts, *block.inputs]
        self.trained = dict(zip(slots, [*consts, *old, *batch], strict=True))
        self.pruned = dict(zip(slots, [*consts, *new, *batch], strict=True))
        self.differ = {block.inputs[leaf] for leaf in changed}
        jaxprs.run_block(block, self.trained)
        for op in block.ops:
            reached = any(self.differs(ref) for ref in op.inputs)
            # a bound holds for values that stay finite, so a test for NaN is known
            if reached and not _asks_for_nan(op):
                self.differ.update(op.outputs)
                answers = jaxprs.apply(op, *[self.p(ref) for ref in op.inputs])
            else:
                answers = [self.trained[slot] for slot in op.outputs]
            self.pruned.update(zip(op.outputs, answers, strict=True))
        self.made_by = {slot: op for op in block.ops for slot in op.outputs}
        floats = [a.dtype for a in self.trained.values() if floating(a)]
        self.dtype = wide(*floats)

    def v(self, ref: Ref) -> Any:
        """The trained network's value."""
        return ref.value if isinstance(ref, Literal) else self.trained[ref]

    def p(self, ref: Ref) -> Any:
        """The pruned network's value."""
        return ref.value if isinstance(ref, Literal) else self.pruned[ref]

    def differs(self, ref: Ref) -> bool:
        """Whether pruning reaches this value."""
        return isinstance(ref, int) and ref in self.differ

    def data(self, ref: Ref) -> bool:
        """Whether it depends on the batch."""
        return isinstance(ref, int) and ref in self.network.data

    def is_zero(self, ref: Ref) -> bool:
        """Whether it is a constant zero."""
        if isinstance(ref, Literal):
            return bool(np.all(np.asarray(ref.value) == 0))
        op = self.made_by.get(ref)
        if op is None or op.name not in ("broadcast_in_dim", "convert_element_type"):
            return False
        return self.is_zero(op.inputs[0])


def _asks_for_nan(op: Op) -> bool:
    return op.name == "is_finite" or (op.name == "ne" and op.inputs[0] is op.inputs[1])
