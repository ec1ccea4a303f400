"""Pruning methods of the literature that are rules: closed forms for one layer.

A rule is hashable configuration with a pattern. ``answer(W, evidence)`` takes a layer's
weights ``[b, d_in, d_out]`` and what its statistic sums, and gives new weights with
zeros as the pattern says. None moves a bias, knows of the ReLU behind the layer, or has
a certificate.

Knows arrays, patterns and what a method is.
"""

import dataclasses
import functools
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax import results
from nettrim_jax._trees import STATIC
from nettrim_jax.calibration.statistics import Moments, Statistic
from nettrim_jax.methods.base import (
    Answer,
    Cost,
    Lanes,
    LayerData,
    LayerKind,
    by_layer,
    together,
)
from nettrim_jax.methods.budget import Share
from nettrim_jax.methods.patterns import Count, Pattern, share_of
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Rule:
    """What all rules share.

    Attributes:
      pattern: what may be left of a layer.
    """

    pattern: Pattern

    bias: ClassVar[str] = "fixed"
    statistics: ClassVar[tuple[Statistic, ...]] = ()

    def __post_init__(self):
        if not isinstance(self.pattern, Pattern):
            raise MethodError(
                f"{type(self).__name__}({self.pattern!r}): expected a pattern, such as "
                f"{type(self).__name__}(nettrim_jax.Sparsity(0.9))"
            )

    @property
    def shared(self) -> Share | None:
        """One number of weights for all layers, if the pattern says so."""
        return share_of(self.pattern)

    def counted(self, left: Array, shape: tuple[int, ...]) -> Self:
        """The same rule for one layer that keeps so many weights."""
        return dataclasses.replace(self, pattern=Count(left=left, shape=shape))

    def check(self) -> None:
        """Nothing is left to check once it is made."""

    def bind(self, kind: LayerKind, cascade: bool) -> Self:
        """The same rule; raises MethodError if the pattern does not fit the layer."""
        self.pattern.check(kind.shape)
        return self

    def evidence(self, data: LayerData, held: int) -> Array | None:
        """What ``answer`` looks at beside the weights, ``[b, ...]``."""
        return None

    def answer(self, W: Array, evidence: Array | None) -> Array:
        """New weights, ``[b, d_in, d_out]``."""
        raise NotImplementedError

    def prepare(self, data: LayerData, kind: LayerKind) -> None:
        """There is nothing to solve."""

    def solve(self, problem: None, lanes: Lanes, start: None = None) -> None:
        """Is not called, as there is no problem."""

    def cost(self, problem: None) -> Cost:
        """Nothing."""
        return Cost(0, 0)

    def conclude(self, data: LayerData, solved: None, kind: LayerKind) -> Answer:
        """What the rule leaves of the trained weights."""
        return _conclude(self, data, kind.layers, kind.held)


@functools.partial(jax.jit, static_argnames=("layers", "held"))
def _conclude(rule: Rule, data: LayerData, layers: int, held: int) -> Answer:
    """The rule's answer; its arrays have one entry for each of the ``layers``."""
    W, evidence = data.W0, rule.evidence(data, held)

    def apart(a: Array) -> Array:
        return by_layer(a, layers)

    def answer(rule: Rule, W: Array, evidence: Array | None) -> Array:
        return rule.answer(W, evidence)

    new = jax.vmap(answer)(rule, *jax.tree.map(apart, (W, evidence))).reshape(W.shape)
    good = jnp.isfinite(new).all((1, 2)) & data.finite()
    live = None
    if evidence is not None:
        good &= jnp.isfinite(evidence).all((1, 2))
        # without a row that counted nothing is known of the weights: they stay
        live = jnp.any(data.to_fit(held).valid, axis=1)
    good = together(good, layers)
    result = jnp.where(good, results.DIRECT, results.NAN).astype(jnp.int32)
    return Answer(new, None, result, {}, live)


@dataclasses.dataclass(frozen=True)
class MomentRule(Rule):
    """A rule that looks at the second moments of the inputs, ``[b, d_in, d_in]``."""

    statistics: ClassVar[tuple[Statistic, ...]] = (Moments(),)

    def evidence(self, data: LayerData, held: int) -> Array:
        """The sums ``X^T X`` over all rows but those held out."""
        return data.moments(held)[:, :-1, :-1]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Magnitude(Rule):
    r"""Removes the weights that are smallest by :math:`|W_{ij}|`; the others stay.

    (Han, Pool, Tran and Dally, 2015.) Groups are ranked by their Euclidean norm.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> rule = nt.Magnitude(nt.Sparsity(0.5))
      >>> rule.answer(jnp.array([[[3.0], [-4.0]]]), None)[0].tolist()
      [[0.0], [-4.0]]
    """

    @property
    def shared(self) -> Share | None:
        """All layers' weights are compared by their size."""
        share = share_of(self.pattern)
        return share and dataclasses.replace(share, measured=False)

    def answer(self, W: Array, evidence: Array | None = None) -> Array:
        """New weights, ``[b, d_in, d_out]``."""
        return jnp.where(self.pattern.keep(W**2), W, 0)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Random(Rule):
    """Keeps a choice drawn at random; what it keeps stays as trained.

    Under ``Sparsity`` every choice that the pattern allows is as likely as any other,
    and so it is among groups of one size. Layers draw apart: the key is made of the
    seed and of the layer's weights.

    Attributes:
      pattern: what may be left of a layer.
      seed: an integer in [0, 2**32); the same one draws the same choice.

    Raises:
      MethodError: the seed is no such integer.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> rule = nt.Random(nt.NM(1, 2), seed=1)
      >>> rule.answer(jnp.array([[[3.0], [-4.0]]]), None)[0].tolist()
      [[0.0], [-4.0]]
    """

    seed: int = dataclasses.field(default=0, metadata=STATIC)

    def __post_init__(self):
        super().__post_init__()
        seed, whole = self.seed, int | np.integer
        good = isinstance(seed, whole) and not isinstance(seed, bool)
        if not good or not 0 <= seed < 2**32:
            raise MethodError(
                f"Random(seed={seed!r}): expected an integer of at least 0 and below "
                "2**32"
            )

    def answer(self, W: Array, evidence: Array | None = None) -> Array:
        """New weights, ``[b, d_in, d_out]``."""
        narrow = jax.lax.stop_gradient(W).astype(jnp.float32)
        bits = jax.lax.bitcast_convert_type(narrow, jnp.uint32)
        key = jax.random.key(np.uint32(self.seed))
        key = jax.random.fold_in(key, jnp.sum(bits, dtype=jnp.uint32))
        score = jax.random.uniform(key, W.shape, jnp.float32)
        return jnp.where(self.pattern.keep(score), W, 0)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Wanda(MomentRule):
    r"""Removes what is smallest by :math:`|W_{ij}| \, \|X_{\cdot i}\|`; the rest stays.

    The paper compares the weights of one unit with each other:
    ``Sparsity(level, scope="column")``. (Sun, Liu, Bair and Kolter, 2024.)

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> rule = nt.Wanda(nt.Sparsity(0.5))
      >>> gram = jnp.diag(jnp.array([4.0, 1.0]))[None]
      >>> rule.answer(jnp.array([[[3.0], [-4.0]]]), gram)[0].tolist()
      [[3.0], [0.0]]
    """

    def answer(self, W: Array, evidence: Array | None) -> Array:
        """New weights, ``[b, d_in, d_out]``, by the sums ``X^T X``."""
        assert evidence is not None
        sizes = jnp.diagonal(evidence, axis1=1, axis2=2)[:, :, None]
        return jnp.where(self.pattern.keep(W**2 * sizes), W, 0)
