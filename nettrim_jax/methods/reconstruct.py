r"""Exact budgets: weights of a pattern whose response is nearest to the trained one.

Knows patterns, their loop and what a method is.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax import results
from nettrim_jax._numerics import divide
from nettrim_jax._trees import STATIC
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.calibration.statistics import Moments, OutputSensitivity, Statistic
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
from nettrim_jax.methods.pattern_admm import RIDGES, UNITS, Settings, reconstruct
from nettrim_jax.methods.patterns import Count, Pattern, share_of
from nettrim_jax.methods.quadratic import Observed
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array

BIASES = ("free", "fixed")
NUMBERS = int | float | np.integer | np.floating  # that a setting may be
# of the loss is what moves the output: of layers alone, and of those that follow others
ALONE, TOGETHER = 0.08, 0.8


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Reconstruct:
    r"""Exactly so many weights, chosen and fitted together.

    .. math::
        \min_{W \in S, \, b} \; \tfrac12 \|X W + b + t - T\|_M^2
        + \tfrac\lambda2 \|D (W - W_0)\|_F^2, \qquad
        T = \begin{cases} Y & \text{on } \Omega \\
        \alpha Y + (1 - \alpha) \min(R, 0) & \text{off } \Omega \end{cases}

    for a layer that a ReLU follows, with :math:`S` what the pattern allows, :math:`Y`
    the trained response before the ReLU, :math:`\Omega` where it is positive,
    :math:`R` the present response, with which :math:`T` moves on, and :math:`D^2` the
    energy of the inputs; for any other layer :math:`T = Y`. Errors :math:`E` of units
    are measured by :math:`\|E\|_M^2 = \operatorname{tr} E M E^\top` with

    .. math::
        M = (1 - \beta) I + \beta \, \bar M, \qquad
        \bar M \propto \sum_n J_n^\top J_n, \quad \operatorname{tr} \bar M = d_{out},

    where :math:`J_n` is the derivative of the network's whole output by the n-th row
    of the layer's answer, estimated by one backward pass: so weights go where the
    output feels them, and errors of units may cancel there. (Second-order pruning with
    such factors of the curvature: Wang et al., 2019.)

    It is ADMM with the projection on :math:`S` (Boyd et al., 2011, section 9.1; Meng et
    al., 2024, use it for layers without a ReLU), on the second moments of
    all rows. The set is not convex: there is no certificate, and another rounding, as
    within ``jax.jit`` or on another device, may choose other weights that do as well.

    The ridge :math:`\lambda`, which keeps weights near the trained ones, and the plain
    part :math:`\alpha` keep a layer from learning its rows by heart. Where they are not
    given, each layer's are those that do best on a quarter of its rows, which are then
    used with the others.

    Attributes:
      pattern: what may be left of a layer.
      ridge: :math:`\lambda`, at least 0, relative to the moments' diagonal.
      plain: :math:`\alpha`, in [0, 1]; raised to what the loss needs to have a minimum
        where more rows are summed than kept.
      downstream: :math:`\beta`, in [0, 1]: how much of the loss looks at the network's
        output rather than at the layer. Unless given 0.08 in parallel mode, where each
        layer is to stand for itself (where only the network counts more is better), and
        0.8 in cascade mode. It is 0 of layers that feed no other one that can be
        pruned, of experts behind ``jax.lax.ragged_dot``, and where what runs has no
        derivative in reverse (a while loop) or none but zero; the report says so.
        Derivatives that a function declares for itself (``jax.custom_vjp``) do not
        count. It takes the memory of a backward pass on each batch, in which nothing
        is computed twice to save some (``jax.checkpoint`` does not count either); 0
        spares it.
      bias: ``"free"``: the layer's own bias moves. ``"fixed"``: it stays.
      steps: of ADMM, at least 1. Unless given 150, or 36 and more where the products of
        so many would have over 3e10 terms: for layers of some 600 inputs and units.

    Raises:
      MethodError: an attribute is out of its range.

    Example:
      >>> import jax
      >>> import nettrim_jax as nt
      >>> params = {"w": jax.random.normal(jax.random.key(0), (8, 4))}
      >>> x = jax.random.normal(jax.random.key(1), (200, 8))
      >>> apply_fn = lambda params, x: jax.nn.relu(x @ params["w"])
      >>> pruned = nt.prune(params, apply_fn, x, method=nt.Sparsity(0.75))
      >>> int((pruned.params["w"] != 0).sum())
      8
    """

    pattern: Pattern
    ridge: float | None = dataclasses.field(default=None, metadata=STATIC)
    plain: float | None = dataclasses.field(default=None, metadata=STATIC)
    downstream: float | None = dataclasses.field(default=None, metadata=STATIC)
    bias: str = dataclasses.field(default="free", metadata=STATIC)
    steps: int | None = dataclasses.field(default=None, metadata=STATIC)

    def __post_init__(self):
        if not isinstance(self.pattern, Pattern):
            raise MethodError(
                f"Reconstruct({self.pattern!r}): expected a pattern, such as "
                "Reconstruct(nettrim_jax.Sparsity(0.9))"
            )
        ranges = {"ridge": math.inf, "plain": 1.0, "downstream": 1.0}
        for name, most in ranges.items():
            value = getattr(self, name)
            number = isinstance(value, NUMBERS) and not isinstance(value, bool)
            good = number and 0 <= value <= most and value < math.inf
            if value is not None and not good:
                span = "of at least 0" if name == "ridge" else "in [0, 1]"
                leave = "choose it on rows kept aside"
                leave = "take the mode's" if name == "downstream" else leave
                raise MethodError(
                    f"Reconstruct({name}={value!r}): expected a finite Python number "
                    f"{span}, or None to {leave}"
                )
        if self.bias not in BIASES:
            raise MethodError(
                f"Reconstruct(bias={self.bias!r}): expected one of {BIASES}"
            )
        steps = self.steps
        whole = isinstance(steps, int | np.integer) and not isinstance(steps, bool)
        if steps is not None and not (whole and steps >= 1):
            raise MethodError(
                f"Reconstruct(steps={steps!r}): expected an integer of at least 1"
            )

    def check(self) -> None:
        """Nothing is left to check once it is made."""

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """Second moments, and where the output feels errors if that counts."""
        return (Moments(), OutputSensitivity()) if self.downstream else (Moments(),)

    @property
    def shared(self) -> Share | None:
        """One number of weights for all layers, if the pattern says so."""
        return share_of(self.pattern)

    def counted(self, left: Array, shape: tuple[int, ...]) -> "Reconstruct":
        """The same method for one layer that keeps so many weights."""
        return dataclasses.replace(self, pattern=Count(left=left, shape=shape))

    def bind(self, kind: LayerKind, cascade: bool) -> "Reconstruct":
        """With what it leaves to the mode; MethodError if the pattern does not fit."""
        self.pattern.check(kind.shape)
        if self.downstream is not None:
            return self
        return dataclasses.replace(self, downstream=TOGETHER if cascade else ALONE)

    def prepare(self, data: LayerData, kind: LayerKind) -> "_Problem":
        """What the site saw, ``[layers, b, ...]``, with the pattern."""
        seen, share = _observed(data, kind.held, kind.layers, self.downstream or 0.0)
        free = kind.biased and self.bias == "free"
        settings = Settings(kind.relu, free, self.ridge, self.plain, self.steps)
        return _Problem(self.pattern, seen, share, settings)

    def solve(self, problem: "_Problem", lanes: Lanes, start: None = None) -> "_Solved":
        """Weights times the scale, and how far biases move the response."""
        stack = problem.pattern, problem.seen
        W, move = lanes.each(_one_layer, stack, settings=problem.settings)
        return _Solved(W, move, problem.share)

    def conclude(self, data: LayerData, solved: "_Solved", kind: LayerKind) -> Answer:
        """What was solved, in the units of the params."""
        return _conclude(data, solved, kind.layers, kind.held)

    def cost(self, problem: "_Problem") -> Cost:
        """Of one layer's lanes."""
        _, b, n, d_in = problem.seen.X.shape
        d_out = problem.seen.W0.shape[3]
        arrays = 2 * n * d_in + 6 * n * d_out + 8 * d_in * d_out + 6 * d_in**2
        # the ridges that are tried run together, on a few of the units
        arrays += len(RIDGES) * (2 * n + 8 * d_in) * min(d_out, UNITS)
        arrays += 0 if problem.seen.coupling is None else 4 * d_out**2
        itemsize = problem.seen.X.dtype.itemsize
        return Cost(b * n * d_in * d_out, b * arrays * itemsize)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Problem:
    """Layers of one shape; the pattern's arrays have one entry for each."""

    pattern: Pattern
    seen: Observed  # [layers, b, ...]
    share: Array  # [layers], of the loss that looks at the network's output
    settings: Settings = dataclasses.field(metadata=STATIC)


class _Solved(NamedTuple):
    W: Array  # [layers, b, d_in, d_out], times the scale
    move: Array  # [layers, b, d_out], what is to be added to the response
    share: Array  # [layers]


def _one_layer(
    lane: tuple[Pattern, Observed], settings: Settings
) -> tuple[Array, Array]:
    return reconstruct(*lane, settings)


@functools.partial(jax.jit, static_argnames=("held", "layers", "downstream"))
def _observed(
    data: LayerData, held: int, layers: int, downstream: float
) -> tuple[Observed, Array]:
    """What is needed to prune to an exact budget, ``[layers, b, ...]``.

    With it comes the share of the loss that does look at the network's output.
    """
    seen = data.to_fit(held)
    W0 = data.W0 * seen.scale[:, None, :]
    P0 = seen.P if seen.P0 is None else seen.P0
    M, share = blend(data.seen, layers, downstream)
    every = Observed(seen.X, seen.P, P0, seen.valid, data.moments(held), W0, M)
    every = jax.tree.map(lambda a: by_layer(a, layers), every)
    return every, jnp.broadcast_to(share, (layers,))


def blend(
    seen: Activation, layers: int, downstream: float
) -> tuple[Array | None, Array]:
    """What errors of units count for: this share of it at the network's output.

    With it comes the share itself, less where nothing is known of some layers.
    """
    M = seen.stats.get("sensitivity")
    if M is None or not downstream:
        return None, jnp.zeros((), seen.X.dtype)
    scale = seen.scale.astype(seen.X.dtype)
    M = M.astype(scale.dtype)
    M = divide(M, scale[:, :, None] * scale[:, None, :])
    b, d_out = scale.shape
    # the lanes of a layer share the pattern's count, so they are measured together
    size = jnp.trace(M, axis1=1, axis2=2).reshape(layers, -1).mean(1) / d_out
    size = jnp.repeat(size, b // layers)
    eye = jnp.eye(d_out, dtype=M.dtype)[None]
    # where nothing is known of what follows, all errors are alike
    known = together(jnp.isfinite(M).all((1, 2)), layers)
    known &= jnp.isfinite(size) & (size > 0)
    size = jnp.where(known, size, 1)[:, None, None]
    M = jnp.where(known[:, None, None], M / size, eye)
    # eigenvectors of equal eigenvalues, those of dead units, have no derivative
    M = jax.lax.stop_gradient(downstream * M + (1 - downstream) * eye)
    return M, downstream * jnp.mean(known, dtype=M.dtype)


@functools.partial(jax.jit, static_argnames=("layers", "held"))
def _conclude(data: LayerData, solved: _Solved, layers: int, held: int) -> Answer:
    """The weights of an exact budget; what stays keeps every bit."""
    seen, W0 = data.seen, data.W0
    scale = seen.scale[:, None, :]
    W, move = solved.W.reshape(W0.shape), solved.move.reshape(-1, W0.shape[2])
    good = jnp.isfinite(move).all(1) & data.finite()
    for a in (W, seen.stats["moments"]):
        good &= jnp.isfinite(a).all((1, 2))
    good = together(good, layers)
    # without a row that counted nothing is known of the weights: they stay
    live = jnp.any(data.to_fit(held).valid, axis=1)
    same = W == W0 * scale
    # all of it, or what is not zero: a scale of zero hides weights
    same &= (W != 0) | jnp.all(same)
    new = jnp.where(same, W0, divide(W, scale))
    bias = None if data.bias0 is None else data.bias0 + divide(move, seen.gain)
    result = jnp.where(good, results.DIRECT, results.NAN).astype(jnp.int32)
    return Answer(new, bias, result, {"downstream": solved.share}, live)
