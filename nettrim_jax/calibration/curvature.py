"""Second derivatives of the outputs' error or of a loss by single weights, as sums.

Knows the network's parts; knows no solver and no method.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import numpy as np

from nettrim_jax._compile import compiled
from nettrim_jax._numerics import divide
from nettrim_jax.calibration import jacobians, samples
from nettrim_jax.calibration.batches import Part
from nettrim_jax.calibration.gradient import Loss
from nettrim_jax.calibration.samples import Taken
from nettrim_jax.results import MethodError
from nettrim_jax.tracing import entries
from nettrim_jax.tracing.entries import Entries
from nettrim_jax.typing import Array

LOSS = (
    "loss: expected loss(params, batch) to give one floating number that JAX can "
    "differentiate by params, for a batch of one sample, too"
)
OUTPUTS = (
    "method: expected apply_fn(params, batch) to have reverse-mode derivatives by "
    "params"
)


@dataclasses.dataclass(frozen=True)
class GaussNewton:
    r"""The diagonal of the Gauss-Newton matrix by weights, ``[b, d_in, d_out]``.

    .. math::
        \operatorname{diag} \sum_n J_n^\top H_n J_n

    over samples :math:`n`, with the derivative :math:`J_n` of the outputs and the
    second derivative :math:`H_n` of the loss by them; without a loss :math:`H_n` is
    one. It is exact where a sample has at most ``samples.FEW`` outputs. Otherwise
    random signs :math:`v` stand for the outputs, and :math:`J^\top v` times
    :math:`J^\top H v` has the same mean.

    Attributes:
      loss: ``loss(params, batch)``, one number; None for half the squared distance of
        the outputs from the trained ones.
    """

    loss: Loss | None = None

    name: ClassVar[str] = "gauss-newton"

    def of(
        self, part: Part, chosen: tuple[int, ...], leaves: Sequence[Array]
    ) -> Mapping[int, Array]:
        """The sums over one batch, by backward passes for each of its samples."""
        try:
            taken = samples.outputs_of(part, self.loss, _moved(part, chosen))
            return _diagonals(part, chosen, leaves, taken)
        except Exception as error:
            raise _failed(error, OUTPUTS if self.loss is None else LOSS) from error


@dataclasses.dataclass(frozen=True)
class SampleGradient:
    r"""Squared derivatives of the loss of each sample, ``[b, d_in, d_out]``.

    .. math::
        \sum_n \Big(\frac{\partial L_n}{\partial W_{ij}}\Big)^2

    Attributes:
      loss: ``loss(params, batch)``, one number, for batches of one sample.
    """

    loss: Loss

    name: ClassVar[str] = "sample gradient"

    def of(
        self, part: Part, chosen: tuple[int, ...], leaves: Sequence[Array]
    ) -> Mapping[int, Array]:
        """The sums over one batch, by a backward pass for each of its samples."""
        try:
            taken = samples.loss_of(part, self.loss, _moved(part, chosen))
            return _diagonals(part, chosen, leaves, taken)
        except Exception as error:
            raise _failed(error, LOSS) from error


def matrix(
    part: Part, loss: Loss | None, picks: Sequence[tuple[int, np.ndarray]]
) -> np.ndarray:
    """The whole Gauss-Newton matrix of one batch by some entries of leaves, ``[n, n]``.

    Args:
      part: the batch.
      loss: as for :class:`GaussNewton`.
      picks: leaves with positions of their entries, which are in this order.

    Raises:
      MethodError: as :class:`GaussNewton`.
    """
    moved = tuple(leaf for leaf, _ in picks)
    index = [jax.device_put(np.asarray(own, np.int32)) for _, own in picks]
    try:
        taken = samples.outputs_of(part, loss, set(moved), every=True)
        found = jacobians.matrix(taken.curve, taken.samples, moved, taken.arrays, index)
        return np.asarray(found, np.float64)
    except Exception as error:
        raise _failed(error, OUTPUTS if loss is None else LOSS) from error


def _failed(error: Exception, asked: str) -> MethodError:
    if isinstance(error, MethodError):
        return error
    first = str(error).strip().split("\n")[0].rstrip(".")
    return MethodError(f"{asked}; it failed: {type(error).__name__}: {first}")


def _diagonals(
    part: Part, chosen: Sequence[int], leaves: Sequence[Array], taken: Taken
) -> dict[int, Array]:
    sites = {k: part.network.sites[k] for k in chosen}
    moved = _moved(part, chosen)
    arrays = taken.arrays._replace(leaves=list(leaves))
    sums = jacobians.products(taken.curve, taken.samples, moved, arrays)
    return {k: _read(entries.weights_of(site, sums)) for k, site in sites.items()}


def _moved(part: Part, chosen: Sequence[int]) -> tuple[int, ...]:
    """The leaves of some sites."""
    return tuple(sorted({part.network.sites[k].leaf for k in chosen}))


@compiled()
def _read(sums: Entries) -> Array:
    """The sums for weights as their rows meet them."""
    each = entries.read(sums._replace(factor=None))
    return each if sums.factor is None else divide(each, sums.factor**2)
