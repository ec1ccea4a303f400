"""``Taylor``: removes the weights whose removal changes a loss least.

Knows rules and the gradient of a loss; knows no network.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax._trees import STATIC
from nettrim_jax.calibration.gradient import Loss, LossGradient
from nettrim_jax.calibration.statistics import Statistic
from nettrim_jax.methods.around import Around
from nettrim_jax.methods.base import LayerData
from nettrim_jax.methods.patterns import Pattern
from nettrim_jax.methods.rules import Rule
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Taylor(Rule):
    r"""Removes the weights whose removal changes a loss least; the others stay.

    .. math::
        s_{ij} = \sum_{\text{batches}}
        \Big(W_{ij} \frac{\partial L}{\partial W_{ij}}\Big)^2

    is the squared change of the loss :math:`L`, to first order, when :math:`W_{ij}`
    becomes zero. Groups (:class:`nettrim_jax.Neurons`, ...) are ranked by the sum over
    their weights. The derivatives are those of the trained network, in both modes. Near
    a minimum the gradient over all data is mostly noise, so give small batches:
    ``iter([(x0, y0), (x1, y1), ...])``. (Molchanov, Tyree, Karras, Aila and Kautz,
    2017, rank feature maps by the first-order term; Molchanov, Mallya, Tyree, Frosio
    and Kautz, 2019, by its square.)

    ``Taylor(loss)``, without a pattern, is a criterion of :class:`nettrim_jax.Units`:
    the mean over samples of the size of the change of the loss when a unit becomes
    zero, to first order (Molchanov et al., 2017, eq. 8).

    Attributes:
      pattern: the pattern of the weights that may be left.
      loss: a function ``loss(params, batch)`` that returns one number, the smaller the
        better. It gets the same batch as ``apply_fn``, so the batch must contain the
        labels. It must itself leave out rows that do not count.

    Raises:
      MethodError: the loss is no function, or does not return one number.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> params, batch = {"w": jnp.array([[3.0], [-4.0]])}, jnp.array([[2.0, 1.0]])
      >>> apply_fn = lambda params, x: x @ params["w"]
      >>> loss = lambda params, x: jnp.sum(apply_fn(params, x))
      >>> method = nt.Taylor(nt.Sparsity(0.5), loss)
      >>> pruned = nt.prune(params, apply_fn, batch, method=method)
      >>> pruned.params["w"].tolist()  # |3 * 2| > |-4 * 1|
      [[3.0], [0.0]]
    """

    pattern: Pattern | None = None
    loss: Loss = dataclasses.field(default=None, metadata=STATIC)  # type: ignore[assignment]

    chooses_units: ClassVar[bool] = True

    def __post_init__(self):
        if self.loss is None and callable(self.pattern):
            object.__setattr__(self, "loss", self.pattern)
            object.__setattr__(self, "pattern", None)
        super().__post_init__()
        if not callable(self.loss):
            raise MethodError(
                f"Taylor(loss={self.loss!r}): expected a function loss(params, batch) "
                "that gives one number, the smaller the better"
            )

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """The squared gradient of the loss."""
        return (LossGradient(self.loss),)

    def evidence(self, data: LayerData, held: int) -> Array:
        """The squares of the derivatives, summed over batches."""
        return data.seen.stats[LossGradient.name]

    def scores(self, around: Around) -> np.ndarray:
        """How far the loss moves without each unit, ``[count]``."""
        assert around.slopes is not None
        return np.mean(np.abs(around.slopes), axis=0)

    def answer(self, W: Array, evidence: Array | None) -> Array:
        """New weights, ``[b, d_in, d_out]``, by the squares of the derivatives."""
        assert evidence is not None and self.pattern is not None
        return jnp.where(self.pattern.keep(W**2 * evidence), W, 0)
