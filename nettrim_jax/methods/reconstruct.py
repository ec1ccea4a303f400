r"""``Reconstruct``: weights of a pattern with the response nearest to the trained one.

Knows patterns, their loop and the protocol of methods; knows no network.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax import results
from nettrim_jax._compile import compiled
from nettrim_jax._numerics import divide
from nettrim_jax._trees import STATIC
from nettrim_jax._values import number, whole
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
from nettrim_jax.methods.exchanges import each_exchanged, suits
from nettrim_jax.methods.pattern_admm import UNITS, Settings, reconstruct
from nettrim_jax.methods.patterned import Patterned
from nettrim_jax.methods.patterns import Pattern
from nettrim_jax.methods.quadratic import Observed
from nettrim_jax.methods.trials import OPEN, Fit, Parts
from nettrim_jax.methods.within import within
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array

BIASES = ("free", "fixed")
# the default of ``downstream`` in parallel mode, and in cascade mode
ALONE, TOGETHER = 0.08, 0.8


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Reconstruct(Patterned):
    r"""Chooses the weights of a pattern and fits their values, together.

    .. math::
        \min_{W \in S, \, b} \; \tfrac12 \|X W + b + t - T\|_M^2
        + \tfrac\lambda2 \|D (W - W_0)\|_F^2, \qquad
        T = \begin{cases} Y & \text{on } \Omega \\
        \alpha Y + (1 - \alpha) \min(R, 0) & \text{off } \Omega \end{cases}

    is the problem of a layer that a ReLU follows; for other layers :math:`T = Y`. Here
    :math:`S` is the set of weights that the pattern allows, :math:`Y` the trained
    response before the ReLU, :math:`\Omega` the entries where it is positive, :math:`R`
    the present response, with which :math:`T` is updated, and :math:`D^2` the energy of
    the inputs. The errors :math:`E` of the units have the norm
    :math:`\|E\|_M^2 = \operatorname{tr} E M E^\top` with

    .. math::
        M = (1 - \beta) I + \beta \, \bar M, \qquad
        \bar M \propto \sum_n J_n^\top J_n, \quad \operatorname{tr} \bar M = d_{out},

    where :math:`J_n` is the derivative of the network's whole output by the n-th row
    of the layer's response, estimated by one backward pass. So weights are kept where
    they matter for the output, and errors of units may cancel there. (Wang et al.,
    2019, use such factors of the curvature in second-order pruning.)

    The solver is ADMM with the projection on :math:`S` (Boyd et al., 2011, section 9.1;
    Meng et al., 2024, use it for layers without a ReLU), on the second moments of all
    rows. The set :math:`S` is not convex. So there is no certificate, and another
    rounding, as within ``jax.jit`` or on another device, may choose other weights that
    are about as good.

    Small layers (:math:`d_{in}^2 d_{out}` up to 33 million) whose errors of units count
    apart, as those of last layers and with ``downstream=0``, end with exchanges of
    single weights, until no pair of one that goes and one that comes back lowers the
    loss; under ``Sparsity`` and ``NM``, and not within a trace such as ``jax.jit``.

    The ridge :math:`\lambda` keeps weights near the trained ones. It and the plain part
    :math:`\alpha` keep a layer from overfitting its rows. Unless given, they are chosen
    for each layer by the error on a quarter of its rows, which the final fit uses, too.

    Of a layer of more than 1024 units, :math:`\bar M` has the 256 directions of the
    largest weights, and all others count by their mean.

    Attributes:
      pattern: the pattern of the weights that may be left.
      ridge: :math:`\lambda`, at least 0, relative to the diagonal of the moments.
      plain: :math:`\alpha`, in [0, 1]. It is raised as far as the loss needs to have a
        minimum, where more rows are summed than kept.
      downstream: :math:`\beta`, in [0, 1]: the share of the loss that measures errors
        at the network's output rather than at the layer. The default is 0.8 in cascade
        mode, and 0.08 in parallel mode, where each layer must also be good by itself
        (if only the output matters, more is better). It is 0 for layers that feed no
        other layer that can be pruned, for experts behind ``jax.lax.ragged_dot``, and
        where the network has no reverse-mode derivative (a while loop) or a zero one;
        the report has the actual value. Derivatives that a function declares for itself
        (``jax.custom_vjp``) do not count. The backward pass takes memory on each batch,
        which ``jax.checkpoint`` does not reduce; 0 avoids the pass.
      bias: ``"free"``: the layer's own bias moves. ``"fixed"``: it stays.
      steps: number of steps of ADMM, at least 1; it is rounded up to a multiple of
        three. The default is 150, or fewer, down to
        36, where the products of 150 steps would have more than 3e10 terms, as in
        layers of some 600 inputs and units.
      deviation: the largest relative change of the network's output, over all that it
        returns. A search then chooses the level of the pattern for each layer, so that
        the fewest weights are left in all, on the rows of the batch that
        :class:`nettrim_jax.NetTrim` describes; the level that is given is the most that
        a layer may lose.
      drop: the same as the largest fall of ``metric``, in its own units.
      metric: a function ``metric(params, batch)`` that returns a number, the larger the
        better.

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
      >>> nt.Reconstruct(nt.Sparsity(), deviation=0.05).shared.most
      0.05
    """

    ridge: float | None = dataclasses.field(default=None, metadata=STATIC)
    plain: float | None = dataclasses.field(default=None, metadata=STATIC)
    downstream: float | None = dataclasses.field(default=None, metadata=STATIC)
    bias: str = dataclasses.field(default="free", metadata=STATIC)
    steps: int | None = dataclasses.field(default=None, metadata=STATIC)

    def __post_init__(self):
        super().__post_init__()
        ranges = {"ridge": math.inf, "plain": 1.0, "downstream": 1.0}
        for name, most in ranges.items():
            value = getattr(self, name)
            good = number(value) and 0 <= value <= most and value < math.inf
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
        if steps is not None and not (whole(steps) and steps >= 1):
            raise MethodError(
                f"Reconstruct(steps={steps!r}): expected an integer of at least 1"
            )

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """Second moments, and the sensitivity of the output if it is used."""
        return (Moments(), OutputSensitivity()) if self.downstream else (Moments(),)

    def bind(self, kind: LayerKind, cascade: bool) -> "Reconstruct":
        """With counts and ``downstream``; raises MethodError if it does not fit."""
        mode = TOGETHER if cascade else ALONE
        return dataclasses.replace(
            self,
            pattern=self.fitted(kind),
            downstream=mode if self.downstream is None else self.downstream,
        )

    def prepare(self, data: LayerData, kind: LayerKind) -> "_Problem":
        """The site's rows and moments, ``[layers, b, ...]``, with the pattern."""
        dtype, layers = data.seen.X.dtype, kind.layers
        P0 = data.seen.P if data.seen.P0 is None else data.seen.P0
        data = data._replace(seen=data.seen._replace(P0=P0))
        # what may change from call to call is an array, so that nothing is compiled
        downstream = jax.device_put(np.asarray(self.downstream or 0.0, dtype))
        seen, share = _observed(data, kind.held, layers, downstream)
        given = (OPEN if a is None else a for a in (self.ridge, self.plain))
        parts = Parts(*(jax.device_put(np.full(layers, a, dtype)) for a in given))
        free = kind.biased and self.bias == "free"
        settings = Settings(kind.clip, free, self.steps)
        pattern = within(self.pattern, data, kind)
        return _Problem(pattern, seen, parts, share, settings)

    def solve(self, problem: "_Problem", lanes: Lanes, start: None = None) -> "_Solved":
        """Weights times the scale, and the change of the response by the biases."""
        stack = problem.pattern, problem.seen, problem.parts
        settings = problem.settings
        fit = lanes.each(_one_layer, stack, settings=settings)
        if suits(problem.pattern, problem.seen):
            fit = each_exchanged(*stack[:2], fit, settings.clip, settings.free)
        return _Solved(fit.W, fit.move, problem.share)

    def conclude(self, data: LayerData, solved: "_Solved", kind: LayerKind) -> Answer:
        """The solution, in the units of the params."""
        answer = _conclude(data, solved, kind.of_rows)
        pattern = within(self.pattern, data, kind)
        return answer._replace(pattern=pattern)

    def cost(self, problem: "_Problem") -> Cost:
        """The cost of one layer's lanes."""
        _, b, n, d_in = problem.seen.X.shape
        d_out = problem.seen.W0.shape[3]
        arrays = 2 * n * d_in + 6 * n * d_out + 8 * d_in * d_out + 6 * d_in**2
        # the trials leave some rows out, and run on some of the units
        arrays += n * d_in + 2 * d_in**2 + (2 * n + 8 * d_in) * min(d_out, UNITS)
        arrays += 0 if problem.seen.coupling is None else 4 * d_out**2
        itemsize = problem.seen.X.dtype.itemsize
        return Cost(b * n * d_in * d_out, b * arrays * itemsize)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Problem:
    """Layers of one shape; the pattern's arrays have one entry for each."""

    pattern: Pattern
    seen: Observed  # [layers, b, ...]
    parts: Parts  # [layers]
    share: Array  # [layers], share of the loss at the network's output
    settings: Settings = dataclasses.field(metadata=STATIC)


class _Solved(NamedTuple):
    W: Array  # [layers, b, d_in, d_out], times the scale
    move: Array  # [layers, b, d_out], the change of the response by the biases
    share: Array  # [layers]


def _one_layer(lane: tuple[Pattern, Observed, Parts], settings: Settings) -> Fit:
    return reconstruct(*lane, settings)


@compiled(static_argnames=("held", "layers"))
def _observed(
    data: LayerData, held: int, layers: int, downstream: Array
) -> tuple[Observed, Array]:
    """The rows and moments of a site, ``[layers, b, ...]``.

    Also returns the actual share of the loss at the network's output.
    """
    seen = data.to_fit(held)
    W0 = data.W0 * seen.scale[:, None, :]
    M, share = blend(data.seen, layers, downstream)
    assert seen.P0 is not None
    every = Observed(seen.X, seen.P, seen.P0, seen.valid, data.moments(held), W0, M)
    every = jax.tree.map(lambda a: by_layer(a, layers), every)
    return every, jnp.broadcast_to(share, (layers,))


def blend(
    seen: Activation, layers: int, downstream: Array | float
) -> tuple[Array | None, Array]:
    """The weights of the errors of units, with this share at the network's output.

    Also returns the actual share, which is less if some sensitivities are unknown.
    """
    M = seen.stats.get("sensitivity")
    if M is None:
        return None, jnp.zeros((), seen.X.dtype)
    scale = seen.scale.astype(seen.X.dtype)
    M = M.astype(scale.dtype)
    M = divide(M, scale[:, :, None] * scale[:, None, :])
    b, d_out = scale.shape
    # the lanes of a layer share the pattern's count, so they are scaled together
    size = jnp.trace(M, axis1=1, axis2=2).reshape(layers, -1).mean(1) / d_out
    size = jnp.repeat(size, b // layers)
    eye = jnp.eye(d_out, dtype=M.dtype)[None]
    # where the sensitivity is unknown, all errors count alike
    known = together(jnp.isfinite(M).all((1, 2)), layers)
    known &= jnp.isfinite(size) & (size > 0)
    size = jnp.where(known, size, 1)[:, None, None]
    M = jnp.where(known[:, None, None], M / size, eye)
    # eigenvectors of equal eigenvalues, as of dead units, have no derivative
    M = jax.lax.stop_gradient(downstream * M + (1 - downstream) * eye)
    return M, downstream * jnp.mean(known, dtype=M.dtype)


@compiled(static_argnames="kind")
def _conclude(data: LayerData, solved: _Solved, kind: LayerKind) -> Answer:
    """The answer, in which weights that stay keep every bit."""
    seen, W0 = data.seen, data.W0
    scale = seen.scale[:, None, :]
    W, move = solved.W.reshape(W0.shape), solved.move.reshape(-1, W0.shape[2])
    good = jnp.isfinite(move).all(1) & data.finite()
    for a in (W, seen.stats["moments"]):
        good &= jnp.isfinite(a).all((1, 2))
    good = together(good, kind.layers)
    # without a row that counts nothing is known of a lane, so it stays as trained
    live = data.live(kind)
    same = W == W0 * scale
    # a zero may be a weight removed behind a scale of zero, unless all weights stay
    same &= (W != 0) | jnp.all(same)
    new = jnp.where(same, W0, divide(W, scale))
    bias = None if data.bias0 is None else data.bias0 + divide(move, seen.gain)
    result = jnp.where(good, results.DIRECT, results.NAN).astype(jnp.int32)
    return Answer(new, bias, result, {"downstream": solved.share}, live)
