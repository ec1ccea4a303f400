"""Infinities that are meant, as in a mask before a softmax, and those that are not.

They are refused where they reach a layer: in its weights, or in the rows of its inputs.
Knows the network; knows no solver.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nettrim_jax._numerics import numpy_of
from nettrim_jax._trees import known, on_host
from nettrim_jax.calibration.batches import Part
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.results import BatchError, ParamsError


def require_finite_weights(part: Part, moves: Mapping[int, bool]) -> None:
    """Raises ParamsError if there are infinities in what is to be pruned.

    Args:
      part: a batch with its network.
      moves: the sites to prune, and whether their own biases move.
    """
    found = part.model.infinite
    for k, bias_moves in moves.items():
        site = part.network.sites[k]
        own = {site.leaf} | ({site.bias[0]} if site.bias and bias_moves else set())
        for leaf in sorted(own & found.keys()):
            raise ParamsError(f"{found[leaf]}. Nothing was pruned")


def finite_rows(
    part: Part, chosen: Sequence[int], seen: tuple[Activation, ...]
) -> tuple[Activation, ...]:
    """The rows, as long as no infinities of the batch or of the params reach them.

    Args:
      part: a batch with its network.
      chosen: the sites whose rows were captured.
      seen: their rows, in this order.

    Raises:
      BatchError: rows are not finite, and the batch has infinities.
      ParamsError: rows are not finite, and only the params have infinities.
    """
    texts = [*part.infinite, *part.model.infinite.values()]
    if not texts:
        return seen
    error = BatchError if part.infinite else ParamsError
    for k, one in zip(chosen, seen, strict=True):
        if known(one.X) and known(one.priority) and not _finite(one):
            raise error(
                f"{'; '.join(texts)} where they reach a layer, as they do the inputs "
                f"of {part.network.sites[k].path}. Nothing was pruned"
            )
    return seen


def _finite(seen: Activation) -> bool:
    """Whether the inputs are finite on all rows that count."""
    X: Any = seen.X
    counts: Any = seen.valid
    if on_host(X) and on_host(counts):
        X, counts = np.asarray(X), np.asarray(counts)
    xp = numpy_of(X)
    return bool(xp.isfinite(xp.where(counts[:, :, None], X, 0)).all())
