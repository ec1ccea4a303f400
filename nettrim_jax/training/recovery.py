"""What ``recover`` keeps and returns, and the distance that its steps make smaller.

Knows arrays; knows no network and no optimiser.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nettrim_jax.typing import Array, Params, wide


class RecoverState(NamedTuple):
    """All that the next step needs; a pytree of arrays, to save and to go on from.

    Attributes:
      step: number of steps so far.
      leaves: the arrays that move, as they are now.
      optimizer: the optimiser's state.
      best: these arrays where the deviation was least.
      curve: steps, and the deviation after as many, ``[k, 2]``.
    """

    step: Any
    leaves: list[Array]
    optimizer: Any
    best: list[Array]
    curve: np.ndarray


@dataclasses.dataclass(frozen=True)
class RecoverReport:
    """What steps did to the deviation; prints as a few lines.

    Attributes:
      before: relative change of the network's output by the pruning, on the batches
        that no step saw.
      deviation: the same of the params that came back.
      step: after how many steps these were reached.
      steps: number of steps that were made.
      planned: number of steps in all, which the learning rate is planned for.
      curve: pairs of a step and the deviation there.
      moved: the paths of the arrays that moved.
      nonzeros: their entries that may be other than zero, of ``size``.
      size: their entries.
    """

    before: float
    deviation: float
    step: int
    steps: int
    planned: int
    curve: tuple[tuple[int, float], ...]
    moved: tuple[str, ...]
    nonzeros: int
    size: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """The deviation at each measurement."""
        # at most eleven columns fit a line
        shown = self.curve[:: -(-len(self.curve) // 11)]
        kept = f"{self.nonzeros} of {self.size} entries"
        lines = [
            f"deviation {self.before:.4f} -> {self.deviation:.4f}, after step "
            f"{self.step} of {self.steps}",
            f"moved: {len(self.moved)} arrays, {kept} may be other than zero",
            "step      " + " ".join(f"{step:>7}" for step, _ in shown),
            "deviation " + " ".join(f"{value:7.4f}" for _, value in shown),
        ]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, eq=False)
class Recovered:
    """The result of :func:`nettrim_jax.recover`.

    Attributes:
      params: the params where the deviation was least, with the tree, shapes, dtypes
        and zeros of the pruned ones.
      mask: the mask of the pruned ones.
      report: the deviation before and after.
      state: what to go on from.
    """

    params: Params
    mask: Params
    report: RecoverReport
    state: RecoverState = dataclasses.field(repr=False)


def relative(new: Sequence[Array], old: Sequence[Array]) -> Array:
    """The squared distance of some arrays, relative to the square of the old ones.

    Entries that are not finite in the old ones count as nothing.
    """
    off, size = jnp.zeros(()), jnp.zeros(())
    for one, other in zip(new, old, strict=True):
        if not jnp.issubdtype(jnp.result_type(other), jnp.floating):
            continue
        dtype = wide(jnp.result_type(other))
        counts = jnp.isfinite(other)
        # chosen before the difference, since infinities have none
        one, other = (jnp.where(counts, a, 0).astype(dtype) for a in (one, other))
        off = off + jnp.sum((one - other) ** 2).astype(off.dtype)
        size = size + jnp.sum(other**2).astype(size.dtype)
    return off / jnp.maximum(size, jnp.finfo(size.dtype).tiny)
