r"""Exact budgets: weights of a pattern whose response is nearest to the trained one.

The loop is ADMM between the pattern and a quadratic, whose step size grows until the
choice of the pattern settles. The quadratic is that of the Gram matrix, so its cost
does not depend on the number of rows; where a ReLU follows, its linear term is moved
now and then to what the ReLU asks for at the present response, so that the quadratic
touches the loss there; it stays above it where errors of all units count alike.

Knows arrays and patterns only.
"""

import dataclasses
import functools
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax.convex.projection import matmul
from nettrim_jax.methods.patterns import NM, STATIC, Pattern, Sparsity
from nettrim_jax.methods.quadratic import Quadratic, Seen, quadratic_of
from nettrim_jax.results import MethodError
from nettrim_jax.typing import HIGHEST, Array

BIASES = ("free", "fixed")
NUMBERS = int | float | np.integer | np.floating  # that a setting may be
# the step size, beside a Gram matrix of unit diagonal and ridge, at start and end
FIRST, LAST = 0.03, 8.0
# of the loss is what moves the output: of layers alone, and of those that follow others
ALONE, TOGETHER = 0.08, 0.8
EVERY = 3  # steps of one size, after which the ReLU is asked again
RIDGES = (1e-3, 1e-2, 0.1, 0.3, 1.0)
PLAINS = (0.0, 0.3, 1.0)
WORK = 3 * 10**10  # terms that the products of all steps may have
FEWEST, MOST = 36, 150  # steps
TRIAL = 21  # steps to compare these
UNITS = 64  # units on which they are compared, at most
ASIDE = 4  # one row of so many is kept aside for it
CLOSE = 0.005  # of two that differ by less the more cautious is taken


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

    moments: ClassVar[bool] = True  # whether it needs those of all rows

    def of_mode(self, cascade: bool) -> "Reconstruct":
        """The same method with what it leaves to the mode."""
        if self.downstream is not None:
            return self
        return dataclasses.replace(self, downstream=TOGETHER if cascade else ALONE)

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

    def fits(self, shape: tuple[int, ...]) -> None:
        """Raises MethodError if the pattern does not fit a layer ``b, d_in, d_out``."""
        self.pattern.check(shape)


def reconstruct(
    method: Reconstruct, seen: Seen, relu: bool, free: bool
) -> tuple[Array, Array]:
    """One layer's weights and how far its biases move.

    Args:
      method: pattern and settings.
      seen: the layer's lanes, which share the pattern's count.
      relu: whether a ReLU follows.
      free: whether the bias moves.

    Returns:
      ``W`` ``[b, d_in, d_out]`` and the bias' movement ``[b, d_out]``.
    """
    ridge, plain = choose(method, seen, relu, free)
    quadratic, pattern = quadratic_of(seen, free), method.pattern
    steps = _steps(method, seen)
    W, b = _loop(pattern, quadratic, seen, ridge, plain, relu, free, steps)
    # where all is kept and nothing came before, every bit stays
    still = (seen.P == seen.P0) | ~seen.valid[:, :, None]
    whole = jnp.all(pattern.keep(jnp.ones_like(W))) & jnp.all(still)
    return jnp.where(whole, seen.W0, W), jnp.where(whole, 0, b)


def _steps(method: Reconstruct, seen: Seen) -> int:
    """Fewer of them where each takes long: the last ones gain least."""
    if method.steps is not None:
        return method.steps
    b, d_in, d_out = seen.W0.shape
    return int(np.clip(WORK // (b * d_in**2 * d_out), FEWEST, MOST))


def choose(
    method: Reconstruct, seen: Seen, relu: bool, free: bool
) -> tuple[Array, Array]:
    """The ridge and the plain part of a layer.

    What is not given is tried on most of the rows, with few steps and some of the
    units, and the others judge.
    """
    n, dtype = seen.X.shape[1], seen.X.dtype
    ridges = RIDGES if method.ridge is None else (float(method.ridge),)
    plains = PLAINS if method.plain is None else (float(method.plain),)
    plains = plains if relu else (1.0,)
    ridge, plain = (jnp.asarray(a[len(a) // 2], dtype) for a in (ridges, plains))
    if len(ridges) == len(plains) == 1 or n < 2 * ASIDE:
        return ridge, plain
    steps = min(TRIAL, _steps(method, seen))
    seen = _some_units(method.pattern, seen._replace(metric=None))
    aside = np.arange(n) % ASIDE == ASIDE - 1
    rows = jnp.where(seen.valid[:, aside, None], seen.X[:, aside], 0)
    rows = jnp.concatenate([rows, seen.valid[:, aside, None].astype(dtype)], axis=2)
    fit = _rows(seen, ~aside)._replace(
        moments=seen.moments - matmul(rows.transpose(0, 2, 1), rows)
    )
    out = _rows(seen, aside)
    run = functools.partial(_loop, method.pattern, quadratic_of(fit, free), fit)

    def error(ridge: Array, plain: Array) -> Array:
        W, b = run(ridge, plain, relu, free, steps)
        answer = out.P0 + matmul(out.X, W - out.W0) + b[:, None, :]
        want = out.P
        if relu:
            answer, want = jnp.maximum(answer, 0), jnp.maximum(want, 0)
        return jnp.sum(jnp.where(out.valid[:, :, None], (answer - want) ** 2, 0))

    def best(tried: Array, off: Array) -> Array:
        """The last of those that are about as good as the best."""
        off = jnp.where(jnp.isfinite(off), off, jnp.inf)
        good = off <= (1 + CLOSE) ** 2 * jnp.min(off)
        return tried[len(tried) - 1 - jnp.argmax(good[::-1])]

    if len(ridges) > 1:  # from bold to cautious
        tried = jnp.asarray(ridges, dtype)
        ridge = best(tried, jax.vmap(error, (0, None))(tried, plain))
    if len(plains) > 1:
        tried = jnp.asarray(plains, dtype)
        plain = best(tried, jax.vmap(error, (None, 0))(ridge, tried))
    return ridge, plain


class _State(NamedTuple):
    Z: Array  # [b, d_in, d_out], within the pattern
    U: Array  # [b, d_in, d_out], scaled dual
    G: Array  # [b, d_in, d_out], the linear term
    b: Array  # [b, d_out]
    rho: Array  # []


def _loop(
    pattern: Pattern,
    quadratic: Quadratic,
    seen: Seen,
    ridge: Array,
    plain: Array,
    relu: bool,
    free: bool,
    steps: int,
) -> tuple[Array, Array]:
    """Weights within the pattern and how far biases move, after so many steps."""
    X, A, e, Q, size, _, share, least, metric = quadratic
    plain = jnp.maximum(plain, least)[:, None, None]
    B = seen.W0 * size[:, :, None]

    def weighed(G: Array) -> Array:
        return G if metric is None else matmul(G, metric.M)

    start = weighed(matmul(A, B)) + ridge * B
    valid = seen.valid[:, :, None]
    on = seen.P > 0 if relu else jnp.ones_like(seen.P, bool)
    rows = jnp.maximum(jnp.sum(valid, axis=1), 1).astype(X.dtype)

    def aim(W: Array, b: Array) -> tuple[Array, Array]:
        """The linear term, and the bias, that the present response asks for."""
        want = seen.P
        if relu:
            R = seen.P0 + matmul(X, W - B) + b[:, None, :]
            off = plain * seen.P + (1 - plain) * jnp.minimum(R, 0)
            want = jnp.where(on, want, off)
        move = jnp.where(valid, want - seen.P0, 0)
        G = share[:, None, None] * matmul(X.transpose(0, 2, 1), move)
        G = start + weighed(G)
        return G, jnp.sum(move, axis=1) / rows if free else b

    def solve(right: Array, rho: Array) -> Array:
        right = matmul(Q.transpose(0, 2, 1), right)
        if metric is None:
            return matmul(Q, right / (e + ridge + rho)[:, :, None])
        curve = e[:, :, None] * metric.e[:, None, :] + ridge + rho
        turned = matmul(right, metric.Q) / curve
        return matmul(matmul(Q, turned), metric.Q.transpose(0, 2, 1))

    growth = (LAST / FIRST) ** (EVERY / max(steps, EVERY))

    def step(i: Array, state: _State) -> _State:
        Z, U, G, b, rho = state
        W = solve(G + rho * (Z - U), rho)
        V = W + U
        Z = jnp.where(pattern.keep(V**2), V, 0)
        state = _State(Z, V - Z, G, b, rho)

        def next_size() -> _State:
            G, b = aim(W, state.b) if relu else (state.G, state.b)
            return _State(Z, state.U / growth, G, b, growth * rho)

        return jax.lax.cond((i + 1) % EVERY == 0, next_size, lambda: state)

    G, b = aim(B, jnp.zeros_like(B[:, 0]))
    state = _State(B, jnp.zeros_like(B), G, b, FIRST * (1 + ridge))
    state = jax.lax.fori_loop(0, steps, step, state)
    W = state.Z / size[:, :, None]
    return W, state.b - jnp.einsum(
        "bi,bio->bo", quadratic.mean, W - seen.W0, precision=HIGHEST
    )


def _rows(seen: Seen, pick: np.ndarray) -> Seen:
    names = ("X", "P", "P0", "valid")
    return seen._replace(**{name: getattr(seen, name)[:, pick] for name in names})


def _some_units(pattern: Pattern, seen: Seen) -> Seen:
    """Evenly spaced units, where a pattern asks the same of any number of them."""
    d_out = seen.W0.shape[2]
    if d_out <= UNITS or not isinstance(pattern, Sparsity | NM):
        return seen
    pick = np.arange(UNITS) * d_out // UNITS
    names = ("P", "P0", "W0")
    return seen._replace(**{name: getattr(seen, name)[:, :, pick] for name in names})
