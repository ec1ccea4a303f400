"""Rules that score each weight by what a loss, or the outputs, lose without it.

Knows rules and statistics of derivatives; knows no network.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jax.tree_util import register_dataclass

from nettrim_jax._numerics import numpy_of
from nettrim_jax._trees import STATIC
from nettrim_jax.calibration.curvature import GaussNewton, SampleGradient
from nettrim_jax.calibration.gradient import Loss, LossSlope
from nettrim_jax.calibration.statistics import Statistic
from nettrim_jax.methods.base import LayerData
from nettrim_jax.methods.patterns import Pattern
from nettrim_jax.methods.rules import Comparable
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Scored(Comparable):
    """A rule whose scores are losses of the whole network, alike in all layers."""

    plain: ClassVar[bool] = True

    def evidence(self, data: LayerData, held: int) -> Array:
        """The statistic of the weights, ``[b, d_in, d_out]``."""
        return data.seen.stats[self.statistics[0].name]

    def score(self, W: Array, stats: Mapping[str, Array]) -> Array:
        """What is lost without each weight, ``[b, d_in, d_out]``."""
        return self.lost(W, stats[self.statistics[0].name])

    def lost(self, W: Array, evidence: Array) -> Array:
        """The same, by the statistic itself."""
        raise NotImplementedError

    def answer(self, W: Array, evidence: Array | None) -> Array:
        """New weights, ``[b, d_in, d_out]``."""
        assert evidence is not None and self.pattern is not None
        return numpy_of(W).where(self.pattern.keep(self.lost(W, evidence)), W, 0)


def _require_loss(method: Any) -> None:
    if not callable(method.loss):
        raise MethodError(
            f"{type(method).__name__}(loss={method.loss!r}): expected a function "
            "loss(params, batch) that gives one number, the smaller the better"
        )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class OBD(Scored):
    r"""Optimal Brain Damage: removes what the output, or a loss, feels least.

    .. math::
        s_{ij} = \tfrac12 h_{ij} W_{ij}^2, \qquad
        h = \operatorname{diag} \sum_n J_n^\top H_n J_n ,

    the diagonal of the Gauss-Newton matrix, summed over samples :math:`n`. Here
    :math:`J_n` is the derivative of a sample's outputs by the weights, and :math:`H_n`
    the second derivative of the loss by the outputs. Without a loss it is that of
    :math:`\tfrac12 \|\text{outputs} - \text{trained outputs}\|^2`, so :math:`H_n` is
    one and no labels are needed. The others stay as trained. (LeCun, Denker and Solla,
    1990, where the diagonal is propagated back layer by layer, without the terms
    between units; here it has them.)

    The diagonal is exact where a sample has at most 16 outputs. Otherwise it is an
    unbiased estimate, by one backward pass per sample from random signs :math:`v` of
    its outputs: :math:`(J_n^\top v) (J_n^\top H_n v)`. Samples are the entries along
    the first axis that all arrays of a batch share. A network that takes one number of
    samples only, and a batch without such an axis, is one sample. Those of weight zero
    do not count, nor do outputs at positions of weight zero.

    Scores of all layers have one unit. So ``Sparsity(level, scope="network")`` compares
    all weights at once, without a search.

    Attributes:
      pattern: the pattern of the weights that may be left.
      loss: a function ``loss(params, batch)`` that returns one number, for a batch of
        one sample, too. It gets the same batch as ``apply_fn``, so the batch must
        contain the labels. It has to call the same ``apply_fn``, and to depend on
        ``params`` through its outputs alone: these are found in the program of the
        loss. None for the outputs themselves.

    Raises:
      MethodError: the loss is no function, does not return one number, or depends on
        the weights otherwise than through the outputs.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> params, x = {"w": jnp.array([[3.0], [-4.0]])}, jnp.array([[2.0, 1.0]])
      >>> apply_fn = lambda params, x: x @ params["w"]
      >>> pruned = nt.prune(params, apply_fn, x, method=nt.OBD(nt.Sparsity(0.5)))
      >>> pruned.params["w"].tolist()  # (3 * 2)^2 > (-4 * 1)^2
      [[3.0], [0.0]]
    """

    pattern: Pattern
    loss: Loss | None = dataclasses.field(default=None, metadata=STATIC)

    def __post_init__(self):
        super().__post_init__()
        if self.loss is not None:
            _require_loss(self)

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """The diagonal of the Gauss-Newton matrix."""
        return (GaussNewton(self.loss),)

    def lost(self, W: Array, evidence: Array) -> Array:
        """Half the curvature times the square of each weight."""
        # less than none is noise, or a loss that is not convex in the outputs
        return numpy_of(W).maximum(evidence, 0) * W**2 / 2


@dataclasses.dataclass(frozen=True)
class _OfLoss(Scored):
    """A rule that needs a loss."""

    pattern: Pattern
    loss: Loss = dataclasses.field(default=None, metadata=STATIC)  # type: ignore[assignment]

    def __post_init__(self):
        super().__post_init__()
        _require_loss(self)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Fisher(_OfLoss):
    r"""Removes the weights with the least empirical Fisher information.

    .. math::
        s_{ij} = \tfrac12 W_{ij}^2
        \sum_n \Big(\frac{\partial L_n}{\partial W_{ij}}\Big)^2

    with the loss :math:`L_n` of each sample. The others stay as trained. (Theis,
    Korshunova, Tejani and Huszár, 2018.) The *empirical* Fisher matrix has the labels
    of the data, not labels drawn by the network, and near a minimum it need not be near
    the curvature (Kunstner, Balles and Hennig, 2019); that is :class:`OBD`. It takes a
    backward pass per sample, some samples at a time. Scores of all layers have one
    unit, as those of :class:`OBD`.

    Attributes:
      pattern: the pattern of the weights that may be left.
      loss: a function ``loss(params, batch)`` that returns one number, the smaller the
        better, for a batch of one sample, too. The batch must contain the labels.
        Samples of weight zero do not count.

    Raises:
      MethodError: the loss is no function, or does not return one number.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> params, batch = {"w": jnp.array([[3.0], [-4.0]])}, jnp.array([[2.0, 1.0]])
      >>> apply_fn = lambda params, x: x @ params["w"]
      >>> loss = lambda params, x: jnp.sum(apply_fn(params, x))
      >>> method = nt.Fisher(nt.Sparsity(0.5), loss)
      >>> nt.prune(params, apply_fn, batch, method=method).params["w"].tolist()
      [[3.0], [0.0]]
    """

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """The squared gradients of samples."""
        return (SampleGradient(self.loss),)

    def lost(self, W: Array, evidence: Array) -> Array:
        """Half the information times the square of each weight."""
        return evidence * W**2 / 2


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Saliency(_OfLoss):
    r"""Removes the weights without which a loss changes least, to first order.

    .. math::
        s_{ij} = \Big|W_{ij} \frac{\partial L}{\partial W_{ij}}\Big|

    The derivative is that of the loss over all data: derivatives of batches are summed
    before the absolute value is taken. The others stay as trained. Groups
    (:class:`nettrim_jax.Neurons`, ...) are ranked by the sum over their weights. (SNIP,
    Lee, Ajanthan and Torr, 2019, who prune a network before it is trained. Where
    training has ended the gradient is mostly noise, which :class:`Taylor` squares batch
    by batch.) Scores of all layers have one unit, as those of :class:`OBD`.

    Attributes:
      pattern: the pattern of the weights that may be left.
      loss: a function ``loss(params, batch)`` that returns one number, the smaller the
        better. The batch must contain the labels. It must itself leave out rows that do
        not count.

    Raises:
      MethodError: the loss is no function, or does not return one number.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> params, batch = {"w": jnp.array([[3.0], [-4.0]])}, jnp.array([[2.0, 1.0]])
      >>> apply_fn = lambda params, x: x @ params["w"]
      >>> loss = lambda params, x: jnp.sum(apply_fn(params, x))
      >>> method = nt.Saliency(nt.Sparsity(0.5), loss)
      >>> nt.prune(params, apply_fn, batch, method=method).params["w"].tolist()
      [[3.0], [0.0]]
    """

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """The gradient of the loss."""
        return (LossSlope(self.loss),)

    def lost(self, W: Array, evidence: Array) -> Array:
        """The change of the loss without each weight, to first order."""
        return abs(W * evidence)
