"""``OBS``: removes weights one by one, and lets all others make up for each.

The matrix part of Optimal Brain Surgeon: what is removed, given the second derivatives
by all weights of a network. It is done by NumPy, in float64.

Knows arrays and patterns; knows no network.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax import results
from nettrim_jax._trees import STATIC
from nettrim_jax._values import number
from nettrim_jax.calibration.gradient import Loss
from nettrim_jax.calibration.statistics import Statistic
from nettrim_jax.methods.base import (
    Answer,
    Direct,
    LayerData,
    LayerKind,
    Unsolved,
)
from nettrim_jax.methods.budget import Together
from nettrim_jax.methods.patterns import (
    NM,
    Pattern,
    Sparsity,
    check_level,
    is_pattern,
    level_of,
)
from nettrim_jax.methods.within import Within
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array

LARGEST = 4096  # weights whose matrix is inverted


@register_dataclass
@dataclasses.dataclass(frozen=True)
class OBS(Unsolved):
    r"""Optimal Brain Surgeon: removes weights one by one; all others make up for each.

    .. math::
        q = \operatorname*{argmin}_q \frac{w_q^2}{2 [H^{-1}]_{qq}}, \qquad
        \delta w = -\frac{w_q}{[H^{-1}]_{qq}} H^{-1} e_q ,

    with the whole Gauss-Newton matrix :math:`H = \sum_n J_n^\top H_n J_n` by the
    weights and biases of all layers together, as :class:`OBD` has its diagonal. After
    each removal the inverse becomes that of the others, so the next one is exact for
    the quadratic model. Without a loss the outputs count, and no labels are needed.
    (Hassibi and Stork, 1993.)

    Under ``Sparsity`` and ``NM`` weights go one by one, as far as the pattern says, and
    under ``scope="network"`` from all layers that have it. Other patterns choose once,
    by the sum of the losses :math:`w_q^2 / 2 [H^{-1}]_{qq}` of each group, and all that
    goes then goes in one step, which is the best one for the others.

    It inverts a matrix of all weights, so it is for small networks, and needs concrete
    values. Layers with other patterns may have an ``OBS`` of their own, with the same
    loss and damping; layers with other methods may not. A model of second order is good
    near the trained weights: to remove many, remove some, train, and so on.

    Attributes:
      pattern: the pattern of the weights that may be left.
      loss: a function ``loss(params, batch)`` that returns one number, as for
        :class:`OBD`; None for the outputs themselves.
      damping: what is added to the diagonal of :math:`H`, relative to its mean.

    Raises:
      MethodError: an attribute is not valid, or the network has more than 4096 weights.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> params, x = {"w": jnp.array([[1.0], [-1.2]])}, jnp.array([[2.0, 1.9]])
      >>> apply_fn = lambda params, x: x @ params["w"]
      >>> pruned = nt.prune(params, apply_fn, x, method=nt.OBS(nt.Sparsity(0.5)))
      >>> [round(float(w), 2) for w in pruned.params["w"][:, 0]]  # takes its part over
      [0.0, -0.16]
    """

    pattern: Pattern
    loss: Loss | None = dataclasses.field(default=None, metadata=STATIC)
    damping: float = dataclasses.field(default=1e-2, kw_only=True, metadata=STATIC)

    bias: ClassVar[str] = "free"
    statistics: ClassVar[tuple[Statistic, ...]] = ()

    def __post_init__(self):
        if not is_pattern(self.pattern):
            raise MethodError(
                f"OBS({self.pattern!r}): expected a pattern, such as "
                "OBS(nettrim_jax.Sparsity(0.9))"
            )
        if self.loss is not None and not callable(self.loss):
            raise MethodError(
                f"OBS(loss={self.loss!r}): expected a function loss(params, batch) "
                "that gives one number, or None"
            )
        if not number(self.damping) or not 0 < self.damping < np.inf:
            raise MethodError(
                f"OBS(damping={self.damping!r}): expected a finite number above 0"
            )

    @property
    def shared(self) -> Together:
        """Prunes the weights of all layers at once."""
        return Together("OBS", (self.loss, self.damping), LARGEST)

    def check(self) -> None:
        """Raises MethodError if the pattern has no level."""
        check_level(self.pattern, "OBS", budget=False)

    def bind(self, kind: LayerKind, cascade: bool) -> Self:
        """The same method; raises MethodError if the pattern does not fit the layer."""
        self.pattern.check(kind.shape)
        return self

    def layer(self, W: np.ndarray, steps: int, allowed: np.ndarray) -> "Layer":
        """One site's weights, with this method's pattern."""
        return Layer(W, steps, self.pattern, allowed)

    def together(
        self, layers: Sequence["Layer"], others: np.ndarray, H: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """New weights of all layers, and of what may move but is not removed.

        Args:
          layers: the weights of each site, with its method's pattern.
          others: what else may move, ``[m]``.
          H: the second derivatives by the weights of the layers, one site after the
            other, and by the others, ``[n + m, n + m]``.
        """
        return pruned(layers, others, H, self.damping)


class Layer(NamedTuple):
    """One site's weights, and what may be left of them."""

    W: np.ndarray  # [b, d_in, d_out]
    steps: int  # number of its layers: each step of a scan is one
    pattern: Any
    allowed: np.ndarray  # [b, d_in, d_out] bool, others become zero


def pruned(
    layers: Sequence[Layer], others: np.ndarray, H: np.ndarray, damping: float
) -> tuple[list[np.ndarray], np.ndarray]:
    """New weights of all layers and of the others, see :meth:`OBS.together`."""
    w = np.concatenate([*(layer.W.ravel() for layer in layers), others])
    scale = np.mean(np.diagonal(H))
    H = H + np.eye(len(H)) * damping * (scale if scale > 0 else 1.0)
    surgeon = Surgeon(w, H)
    sizes = [layer.W.size for layer in layers]
    starts = np.cumsum([0, *sizes])[:-1]
    stays = [~layer.allowed.ravel() for layer in layers]
    surgeon.remove(np.flatnonzero(np.concatenate(stays)))
    places = [
        np.arange(start, start + layer.W.size).reshape(layer.W.shape)
        for layer, start in zip(layers, starts, strict=True)
    ]
    kinds, left = classes(layers, places, len(w))
    if len(left):
        surgeon.one_by_one(kinds, left)
    lost = surgeon.lost()
    gone = [
        place[~kept(layer, lost[place])]
        for layer, place in zip(layers, places, strict=True)
        if not isinstance(layer.pattern, Sparsity | NM)
    ]
    if gone:
        surgeon.remove(np.concatenate(gone))
    return [surgeon.w[place] for place in places], surgeon.w[sum(sizes) :]


def kept(layer: Layer, lost: np.ndarray) -> np.ndarray:
    """What a pattern of groups keeps of a site's layers, by its choice."""
    b = len(layer.W) // layer.steps
    out = []
    for step in range(layer.steps):
        mine = slice(step * b, (step + 1) * b)
        given: Any = layer.allowed[mine], lost[mine]
        out.append(np.asarray(Within(layer.pattern, given[0]).keep(given[1])))
    return np.concatenate(out)


def classes(
    layers: Sequence[Layer], places: Sequence[np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each weight of which number it is a part, or -1; and these numbers."""
    kinds, left = np.full(count, -1), []
    shared: list[tuple[Any, int]] = []  # patterns of the network as a whole
    for layer, place in zip(layers, places, strict=True):
        pattern = layer.pattern
        if not isinstance(pattern, Sparsity | NM):
            continue
        b, d_in, d_out = layer.W.shape
        if isinstance(pattern, NM):
            groups = np.arange(d_in) // pattern.m
            number = groups.max(initial=-1) + 1
            own = (np.arange(b)[:, None] * number + groups)[:, :, None] * d_out
            kinds[place] = len(left) + own + np.arange(d_out)
            left += [pattern.n] * (b * number * d_out)
        elif pattern.scope == "column":
            own = np.arange(b)[:, None, None] * d_out + np.arange(d_out)
            kinds[place] = len(left) + np.broadcast_to(own, place.shape)
            left += [d_in - round(level_of(pattern) * d_in)] * (b * d_out)
        elif pattern.scope == "network":
            known = [at for one, at in shared if one == pattern]
            if not known:
                shared.append((pattern, len(left)))
                known = [len(left)]
                left.append(0)
            kinds[place] = known[0]
        else:
            step = np.arange(b) // (b // layer.steps)
            kinds[place] = len(left) + step[:, None, None]
            each = pattern.nonzeros((b // layer.steps, d_in, d_out))
            left += [each] * layer.steps
    for pattern, at in shared:
        size = int((kinds == at).sum())
        left[at] = size - round(level_of(pattern) * size)
    return kinds, np.array(left, int)


class Surgeon:
    """Weights and the inverse of their second derivatives, as weights go.

    Args:
      w: the weights, ``[n]``.
      H: their second derivatives, positive definite, ``[n, n]``.
    """

    def __init__(self, w: np.ndarray, H: np.ndarray):
        self.w = w.astype(np.float64)
        self.live = np.arange(len(w))  # those that are left
        self.inverse = np.linalg.inv(H.astype(np.float64))  # of these

    def lost(self) -> np.ndarray:
        """What is lost without each weight that is left, ``[n]``; else zero."""
        out = np.zeros(len(self.w))
        out[self.live] = self.w[self.live] ** 2 / (2 * np.diagonal(self.inverse))
        return out

    def remove(self, gone: np.ndarray) -> None:
        """Removes some weights in one step, the best one for all others."""
        gone = np.flatnonzero(np.isin(self.live, gone))
        if not len(gone):
            return
        rows = self.inverse[gone]
        part = np.linalg.solve(rows[:, gone], rows)
        self.w[self.live] -= part.T @ self.w[self.live[gone]]
        self.inverse = self.inverse - rows.T @ part
        self._drop(gone)

    def one_by_one(self, kinds: np.ndarray, left: np.ndarray) -> None:
        """Removes what costs least, until of each kind so many weights are left.

        Args:
          kinds: of which kind each weight is, -1 for none, ``[n]``.
          left: of each kind, how many weights may be left.
        """
        own = kinds[self.live]
        over = np.bincount(own[own >= 0], minlength=len(left)) - left
        while self._some(kinds, over):
            pass

    def _some(self, kinds: np.ndarray, over: np.ndarray) -> bool:
        """Removes some of the weights that are too many; whether there were any."""
        own, w, inverse = kinds[self.live], self.w[self.live], self.inverse
        free = (own >= 0) & (over[own] > 0)
        gone: list[int] = []
        # the arrays get smaller from time to time
        while free.any() and len(gone) <= len(w) // 8:
            diagonal = np.diagonal(inverse)
            q = int(np.argmin(np.where(free, w**2 / diagonal, np.inf)))
            row = inverse[q] / diagonal[q]
            w = w - row * w[q]
            inverse -= np.outer(inverse[:, q], row)
            inverse[q, q] = 1  # it is divided by, and no longer used
            gone.append(q)
            w[gone] = 0
            free[q] = False
            over[own[q]] -= 1
            if over[own[q]] <= 0:
                free &= own != own[q]
        self.w[self.live] = w
        self._drop(np.array(gone, int))
        return bool(gone)

    def _drop(self, gone: np.ndarray) -> None:
        rest = np.setdiff1d(np.arange(len(self.live)), gone)
        self.w[self.live[gone]] = 0
        self.live = self.live[rest]
        self.inverse = self.inverse[np.ix_(rest, rest)]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Put(Direct):
    """Weights and a bias that were found for a layer.

    Attributes:
      W: the weights as rows meet them, ``[b, d_in, d_out]``.
      move: what is added to the bias, ``[b, d_out]``.
    """

    W: Array
    move: Array

    bias: ClassVar[str] = "free"
    statistics: ClassVar[tuple[Statistic, ...]] = ()

    @property
    def shared(self) -> None:
        """Asks nothing of the network as a whole."""

    def check(self) -> None:
        """Does nothing: there is nothing to check."""

    def bind(self, kind: LayerKind, cascade: bool) -> "Put":
        """The same method, since it was made for this layer."""
        return self

    def conclude(self, data: LayerData, solved: None, kind: LayerKind) -> Answer:
        """The weights that were found."""
        W = jnp.asarray(self.W, data.W0.dtype)
        bias = data.bias0
        moved = None if bias is None else bias + jnp.asarray(self.move, bias.dtype)
        good = jnp.isfinite(W).all((1, 2)) & data.finite()
        code = jnp.where(good, results.DIRECT, results.NAN).astype(jnp.int32)
        return Answer(W, moved, code, {})
