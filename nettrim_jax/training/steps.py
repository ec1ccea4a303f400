"""Steps of an optimiser under a mask, measured now and then; the best are kept.

Knows optax and lists of arrays; knows no network.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from nettrim_jax.results import MethodError, ParamsError, warn
from nettrim_jax.training.masking import keep_sparse
from nettrim_jax.training.recovery import RecoverState
from nettrim_jax.typing import Array

if TYPE_CHECKING:
    import optax

Leaves = list[Array]
# of the arrays that move, those that stay, and a batch with its weights
Loss = Callable[[Leaves, Any, Any], Array]
Moved = Callable[[Leaves, Any, Any], tuple[Array, Array]]


class Steps:
    """The arrays that move, step by step.

    Args:
      loss: what the steps make smaller.
      moved: the squared change of the outputs, and their squared size.
      optimizer: makes the steps.
      checks: batches to measure on.
      leaves: the arrays to start from.
      keeps: for each, which entries may be other than zero.
      fixed: what else the two functions need, of arrays.
      state: to go on from; None for a new start.

    Raises:
      MethodError: the deviation of the start is no number.
      ParamsError: the state is not of such arrays.
    """

    def __init__(
        self,
        loss: Loss,
        moved: Moved,
        optimizer: "optax.GradientTransformation",
        checks: Sequence[Any],
        *,
        leaves: Leaves,
        keeps: Sequence[Any],
        fixed: Any,
        state: RecoverState | None,
    ):
        self._keeps, self._fixed, self._checks = list(keeps), fixed, checks
        self._step = jax.jit(functools.partial(_step, (loss, optimizer)))
        self._moved = jax.jit(moved)
        if state is None:
            with _promotion():
                inner = keep_sparse(optimizer, self._keeps).init(leaves)
            state = RecoverState(0, leaves, inner, leaves, np.zeros((0, 2)))
        _check_state(state, leaves)
        self._leaves, self._optimizer = list(state.leaves), state.optimizer
        self._best = list(state.best)
        self.step = int(state.step)
        self.curve = [(int(step), float(value)) for step, value in state.curve]
        if not self.curve:
            self.measure()

    def take(self, batch: Any) -> None:
        """Makes a step."""
        self._leaves, self._optimizer = self._step(
            self._leaves, self._optimizer, self._keeps, self._fixed, batch
        )
        self.step += 1

    def measure(self) -> bool:
        """Measures the deviation, and says whether it is a number."""
        pairs = [self._moved(self._leaves, self._fixed, one) for one in self._checks]
        off, size = (sum(map(float, part)) for part in zip(*pairs, strict=True))
        value = math.sqrt(off / size) if size > 0 else math.nan
        if not self.curve and not math.isfinite(value):
            what = "hold NaN" if size > 0 else "are zero, not floating or not finite"
            raise MethodError(
                f"recover: the network's outputs {what} on the batches to measure on, "
                "so no change is relative to them; let apply_fn return logits"
            )
        if value < min((v for _, v in self.curve), default=math.inf):
            self._best = self._leaves
        if math.isfinite(value):
            self.curve.append((self.step, value))
            return True
        warn(
            f"recover: the deviation is no number any more at step {self.step}; the "
            "best params before it are kept. Give an optimizer with a lower learning "
            "rate, or one that clips gradients"
        )
        return False

    @property
    def best(self) -> tuple[Leaves, int, float]:
        """The arrays with the least deviation, after how many steps, and it."""
        step, value = min(self.curve, key=lambda pair: pair[1])
        return self._best, step, value

    @property
    def state(self) -> RecoverState:
        """What to go on from."""
        curve = np.asarray(self.curve)
        return RecoverState(self.step, self._leaves, self._optimizer, self._best, curve)


def _step(
    made: tuple[Loss, Any],
    leaves: Leaves,
    state: Any,
    keeps: list[Array],
    fixed: Any,
    batch: Any,
) -> tuple[Leaves, Any]:
    import optax

    loss, optimizer = made
    # the mask is an argument, so that no program has it as a constant
    slopes = jax.grad(loss)(leaves, fixed, batch)
    with _promotion():
        updates, state = keep_sparse(optimizer, keeps).update(slopes, state, leaves)
        return optax.apply_updates(leaves, updates), state  # pyright: ignore


@contextlib.contextmanager
def _promotion() -> Iterator[None]:
    """Optimisers promote dtypes and ranks, whatever the user has set."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _check_state(state: Any, leaves: Leaves) -> None:
    if not isinstance(state, RecoverState):
        raise MethodError(
            f"recover(state={type(state).__name__}): expected the state of an earlier "
            "call, recover(...).state"
        )
    for name in ("leaves", "best"):
        got = [(np.shape(a), str(a.dtype)) for a in getattr(state, name)]
        wanted = [(np.shape(a), str(a.dtype)) for a in leaves]
        if got != wanted:
            raise ParamsError(
                f"recover(state=...): {name} are {len(got)} arrays that are not like "
                f"the {len(wanted)} that move; give the state of a call with the same "
                "pruned network and the same also="
            )
