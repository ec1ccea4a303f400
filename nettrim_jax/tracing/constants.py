"""Values that depend on neither the params nor the batch, computed when asked for.

Most constants of a network, such as masks and tables of angles, are of no interest
here. So a constant is kept as how to compute it.

Knows operations; knows no leaf.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nettrim_jax._trees import known
from nettrim_jax.tracing.jaxprs import Op, apply

# operations whose result has the entries of their operand, in any number
ALIKE = ("broadcast_in_dim", "reshape", "squeeze", "transpose", "copy", "copy_p")


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A given value, or a result of an operation on constants.

    Attributes:
      given: the value.
      op: the operation, if the value is its result.
      inputs: the operands.
      which: which of its results.
    """

    given: Any = None
    op: Op | None = None
    inputs: "tuple[Constant, ...]" = ()
    which: int = 0

    @functools.cached_property
    def value(self) -> np.ndarray | None:
        """The value; None if it is traced, as what a jitted caller closes over."""
        if self.op is None:
            return np.asarray(self.given) if known(self.given) else None
        args = [one.value for one in self.inputs]
        if any(arg is None for arg in args):
            return None
        with jax.ensure_compile_time_eval():  # within jit, too
            return np.asarray(apply(self.op, *args)[self.which])

    @functools.cached_property
    def number(self) -> float | None:
        """The value of all entries, without computing them; None if they differ."""
        if self.op is not None and self.op.name in ALIKE:
            return self.inputs[0].number
        if self.op is not None and self.op.name == "convert_element_type":
            inner = self.inputs[0].number
            dtype = self.op.params["new_dtype"]
            return None if inner is None else float(np.asarray(inner).astype(dtype))
        if self.value is None or not self.value.size:
            return None
        first = self.value.flat[0]
        real = self.value.dtype.kind != "c" and (self.value == first).all()
        return float(first) if real else None


def results(op: Op, inputs: Sequence[Constant | None]) -> list[Constant | None]:
    """The results of an operation; they are constants if all operands are."""
    constants = tuple(one for one in inputs if one is not None)
    if op.blocks or len(constants) < len(inputs):
        return [None] * len(op.outputs)
    return [Constant(None, op, constants, k) for k in range(len(op.outputs))]
