"""Rules: pruning methods of the literature that are closed forms for one layer.

A rule is a frozen record with a pattern, and a pytree whose leaves are its numbers that
may be traced. Its ``answer(W, evidence)`` takes a layer's weights ``[b, d_in, d_out]``
and the sums of its statistic, and returns new weights with the zeros of the pattern. No
rule moves a bias, considers the ReLU after the layer, or has a certificate.

Knows arrays, patterns and the protocol of methods; knows no network.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax import results
from nettrim_jax._compile import compiled
from nettrim_jax._numerics import numpy_of
from nettrim_jax._trees import STATIC, on_host
from nettrim_jax.calibration.statistics import Moments, Statistic
from nettrim_jax.methods.around import Around
from nettrim_jax.methods.base import (
    Answer,
    Direct,
    LayerData,
    LayerKind,
    by_layer,
    each_layer,
    together,
)
from nettrim_jax.methods.budget import Budget, Share
from nettrim_jax.methods.counts import is_counted
from nettrim_jax.methods.patterned import Patterned
from nettrim_jax.methods.patterns import Pattern
from nettrim_jax.methods.within import within
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Rule(Direct, Patterned):
    """The base of all rules.

    Attributes:
      pattern: the pattern of the weights that may be left.
      deviation: the largest relative change of the network's output, for which a search
        chooses the level of the pattern, as for :class:`nettrim_jax.Reconstruct`.
      drop: the same as the largest fall of a metric.
      metric: the function ``metric(params, batch)`` for that.
    """

    bias: ClassVar[str] = "fixed"
    loops: ClassVar[bool] = False  # whether it goes through the inputs one by one
    plain: ClassVar[bool] = False  # whether it can answer with NumPy's arrays
    statistics: ClassVar[tuple[Statistic, ...]] = ()

    def bind(self, kind: LayerKind, cascade: bool) -> Self:
        """With counts; raises MethodError if the pattern does not fit the layer."""
        return dataclasses.replace(self, pattern=self.fitted(kind))

    def evidence(self, data: LayerData, held: int) -> Array | None:
        """The sums that ``answer`` uses, ``[b, ...]``; None if it uses only weights."""
        return None

    def answer(self, W: Array, evidence: Array | None) -> Array:
        """New weights, ``[b, d_in, d_out]``."""
        raise NotImplementedError

    def conclude(self, data: LayerData, solved: None, kind: LayerKind) -> Answer:
        """The rule's new weights."""
        # what needs no row does not mind if there is none
        kind = kind.of_rows._replace(routed=kind.routed and bool(self.statistics))
        rule = dataclasses.replace(self, pattern=within(self.pattern, data, kind))
        leaves = jax.tree.leaves((rule, data))
        if self.plain and is_counted(self.pattern) and all(map(on_host, leaves)):
            with np.errstate(all="ignore"):  # overflow shows in the result
                rule, data = jax.tree.map(np.asarray, (rule, data))
                return _concluded(rule, data, kind)
        program = _conclude_loop if self.loops else _conclude
        return program(rule, data, kind)


def _concluded(rule: Rule, data: LayerData, kind: LayerKind) -> Answer:
    """The rule's answer.

    A number of the rule is that of all layers; an array has one entry for each.
    """
    W, evidence = data.W0, rule.evidence(data, kind.held)
    layers = kind.layers
    xp = numpy_of(W)

    def for_each(a: Array) -> Array:
        return xp.broadcast_to(a, (layers,)) if xp.ndim(a) == 0 else a

    def apart(a: Array) -> Array:
        return by_layer(a, layers)

    rule = jax.tree.map(for_each, rule)
    given = rule, *jax.tree.map(apart, (W, evidence))
    new = each_layer(type(rule).answer, given).reshape(W.shape)
    good = xp.isfinite(new).all((1, 2)) & data.finite()
    live = None
    if evidence is not None:
        good &= xp.isfinite(evidence).all(axis=tuple(range(1, evidence.ndim)))
        # without a row that counts nothing is known of a lane, so it stays as trained
        live = data.live(kind)
    good = together(good, layers)
    result = xp.where(good, results.DIRECT, results.NAN).astype(np.int32)
    return Answer(new, None, result, {}, live, pattern=rule.pattern)


_conclude = compiled(static_argnames="kind")(_concluded)
_conclude_loop = compiled(static_argnames="kind", often=True)(_concluded)


@dataclasses.dataclass(frozen=True)
class MomentRule(Rule):
    """A rule that uses the second moments of the inputs, ``[b, d_in, d_in]``."""

    statistics: ClassVar[tuple[Statistic, ...]] = (Moments(),)

    def evidence(self, data: LayerData, held: int) -> Array:
        """The sums ``X^T X`` over all rows but those held out."""
        return data.moments(held)[:, :-1, :-1]


@dataclasses.dataclass(frozen=True)
class Comparable(Rule):
    """A rule whose scores are alike in all layers, and so compared at once."""

    @property
    def shared(self) -> Budget | Share | None:
        """The budget, or the pattern's share, for which all weights are compared."""
        shared = super().shared
        if isinstance(shared, Share):
            return dataclasses.replace(shared, measured=False)
        return shared


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Magnitude(Comparable):
    r"""Removes the weights with the least :math:`|W_{ij}|`; the others stay.

    Groups are ranked by their Euclidean norm. (Han, Pool, Tran and Dally, 2015.)

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> rule = nt.Magnitude(nt.Sparsity(0.5))
      >>> rule.answer(jnp.array([[[3.0], [-4.0]]]), None)[0].tolist()
      [[0.0], [-4.0]]
    """

    plain: ClassVar[bool] = True

    def score(self, W: Array, stats: Mapping[str, Array]) -> Array:
        """The magnitude of each weight, ``[b, d_in, d_out]``."""
        return abs(W)

    def answer(self, W: Array, evidence: Array | None = None) -> Array:
        """New weights, ``[b, d_in, d_out]``."""
        return numpy_of(W).where(self.pattern.keep(W**2), W, 0)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Random(Rule):
    """Keeps weights that are chosen at random; they stay as trained.

    With ``Sparsity`` all choices that the pattern allows are equally likely, and so are
    those of groups of one size. Each layer has a choice of its own, because the key is
    made of the seed and the layer's weights.

    Without a pattern it is a criterion of :class:`nettrim_jax.Units`.

    Attributes:
      pattern: the pattern of the weights that may be left.
      seed: an integer in [0, 2**32); the same seed makes the same choice.

    Raises:
      MethodError: the seed is not such an integer.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> rule = nt.Random(nt.NM(1, 2), seed=1)
      >>> rule.answer(jnp.array([[[3.0], [-4.0]]]), None)[0].tolist()
      [[0.0], [-4.0]]
    """

    pattern: Pattern | None = None
    seed: int = dataclasses.field(default=0, metadata=STATIC)

    loss: ClassVar[None] = None
    chooses_units: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        seed, whole = self.seed, int | np.integer
        good = isinstance(seed, whole) and not isinstance(seed, bool)
        if not good or not 0 <= seed < 2**32:
            raise MethodError(
                f"Random(seed={seed!r}): expected an integer of at least 0 and below "
                "2**32"
            )

    def scores(self, around: Around) -> np.ndarray:
        """A random order of units, ``[count]``; one of its own for each group."""
        name = zlib.crc32(around.name.encode())
        return np.random.default_rng((self.seed, name)).random(around.count)

    def answer(self, W: Array, evidence: Array | None = None) -> Array:
        """New weights, ``[b, d_in, d_out]``."""
        narrow = jax.lax.stop_gradient(W).astype(jnp.float32)
        bits = jax.lax.bitcast_convert_type(narrow, jnp.uint32)
        key = jax.random.key(np.uint32(self.seed))
        key = jax.random.fold_in(key, jnp.sum(bits, dtype=jnp.uint32))
        score = jax.random.uniform(key, W.shape, jnp.float32)
        assert self.pattern is not None
        return jnp.where(self.pattern.keep(score), W, 0)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Wanda(MomentRule):
    r"""Removes the weights with the least :math:`|W_{ij}| \, \|X_{\cdot i}\|`.

    Here :math:`\|X_{\cdot i}\|` is the norm of an input over the rows; other weights
    stay. The paper compares only the weights of one unit with each other, as
    ``Sparsity(level, scope="column")`` does. (Sun, Liu, Bair and Kolter, 2024.)

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> rule = nt.Wanda(nt.Sparsity(0.5))
      >>> gram = jnp.diag(jnp.array([4.0, 1.0]))[None]
      >>> rule.answer(jnp.array([[[3.0], [-4.0]]]), gram)[0].tolist()
      [[3.0], [0.0]]
    """

    plain: ClassVar[bool] = True

    def answer(self, W: Array, evidence: Array | None) -> Array:
        """New weights, ``[b, d_in, d_out]``, by the sums ``X^T X``."""
        assert evidence is not None
        xp = numpy_of(W)
        sizes = xp.diagonal(evidence, axis1=1, axis2=2)[:, :, None]
        return xp.where(self.pattern.keep(W**2 * sizes), W, 0)
