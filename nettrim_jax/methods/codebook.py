r"""``Codebook``: weights of few values, with the response nearest to the given one.

Knows arrays, few values and the protocol of methods; knows no network.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jax.tree_util import register_dataclass

from nettrim_jax import results
from nettrim_jax._compile import compiled
from nettrim_jax._numerics import after, divide, matmul
from nettrim_jax._trees import STATIC
from nettrim_jax._values import flag, whole
from nettrim_jax.calibration.statistics import Moments, Statistic
from nettrim_jax.methods.base import Answer, Cost, Lanes, LayerData, LayerKind
from nettrim_jax.methods.centroids import (
    ascending,
    chosen,
    k_means,
    nearest,
    start,
    sums,
)
from nettrim_jax.methods.compensation import cut, extended, sweep, upper_factor
from nettrim_jax.methods.quadratic import Centred, Observed, centred
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array

BIASES = ("free", "fixed")
GROUPS = ("leaf", "unit")
MOST = 8  # bits: a code is one byte
BLOCK = 128  # number of inputs that later ones make up for by one product
ROUNDS = 5  # of values fitted to the response, and places chosen anew
RIDGE = 0.1  # of distances to the given weights, relative to the mean input's energy
PULL = 1e-3  # towards the values of the round before
INNER = 12  # steps of conjugate gradients in a round
FLOOR = 1e-3  # least weight of a unit, relative to the mean


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Codebook:
    r"""Gives the weights of a layer few values, each of which many weights share.

    .. math::
        \min_{c, k} \; \sum_j s_j^2 \left( \|X (q_j - w_j) + m_j - d_j\|^2
        + \lambda \|q_j - w_j\|^2 \right), \qquad q_{ij} = c_{k_{ij}}

    where :math:`w_j` are the given weights of a unit, those that are not zero,
    :math:`s_j` the factor of its response, :math:`d_j` what its response lost by
    changes of layers before it, and :math:`m_j` what its bias makes up for. Three steps
    make it small. Values start from k-means, in which a weight counts by the second
    moment of its input (Han, Mao and Dally, 2016). Weights are given their nearest
    value one input after another, and later inputs make up for the difference, as in
    OBC and GPTQ (Frantar et al., 2022, 2023), whose order of inputs all units share.
    Then values are fitted to the response by least squares, with a small pull towards
    the last ones, and every weight is given its best value beside all others, by turns;
    the best of these is returned. Zeros stay zero.

    Attributes:
      bits: the number of bits of a code, from 1 to 8: there are at most
        ``2**bits - 1`` values beside zero.
      per: what shares values: ``"leaf"``, all units of a matrix (of a stack each matrix
        has its own), or each ``"unit"``.
      bias: ``"free"``: the layer's own bias moves. ``"fixed"``: it stays.
      compensate: whether other weights make up for the change of each.
      fit: whether values are fitted to the response.

    Raises:
      MethodError: an attribute is not valid.
    """

    bits: int = dataclasses.field(default=5, metadata=STATIC)
    per: str = dataclasses.field(default="leaf", metadata=STATIC)
    bias: str = dataclasses.field(default="free", metadata=STATIC)
    compensate: bool = dataclasses.field(default=True, metadata=STATIC)
    fit: bool = dataclasses.field(default=True, metadata=STATIC)

    statistics: ClassVar[tuple[Statistic, ...]] = (Moments(),)
    shared: ClassVar[None] = None

    def __post_init__(self):
        for name, value, good, wanted in (
            (
                *("bits", self.bits, whole(self.bits) and 1 <= self.bits <= MOST),
                f"an integer from 1 to {MOST}, as 5 for 31 values beside zero",
            ),
            ("per", self.per, self.per in GROUPS, f"one of {GROUPS}"),
            ("bias", self.bias, self.bias in BIASES, f"one of {BIASES}"),
            ("compensate", self.compensate, flag(self.compensate), "True or False"),
            ("fit", self.fit, flag(self.fit), "True or False"),
        ):
            if not good:
                raise MethodError(f"Codebook({name}={value!r}): expected {wanted}")
        # powers of two leave the range of a small integer of NumPy
        object.__setattr__(self, "bits", int(self.bits))

    def check(self) -> None:
        """Does nothing: attributes are checked when it is made."""

    def bind(self, kind: LayerKind, cascade: bool) -> "Codebook":
        """The same method, since it fits every layer."""
        return self

    def prepare(self, data: LayerData, kind: LayerKind) -> "Problem":
        """The site's weights and moments, lanes first."""
        free = kind.biased and self.bias == "free"
        return _prepared(data, free, kind.of_rows)

    def solve(self, problem: "Problem", lanes: Lanes, start: None = None) -> Array:
        """The new weights of every lane."""
        return lanes.each(
            *(share_lane, problem),
            count=2**self.bits - 1,
            apart=self.per == "unit",
            compensate=self.compensate,
            fit=self.fit,
        )

    def conclude(self, data: LayerData, solved: Array, kind: LayerKind) -> Answer:
        """The new weights of a site, and its bias."""
        free = kind.biased and self.bias == "free"
        return _concluded(data, solved, free, kind.of_rows)

    def cost(self, problem: "Problem") -> Cost:
        """The cost of one lane."""
        _, d_in, d_out = problem.W.shape
        numbers = 4 * d_in**2 + 12 * d_in * d_out
        return Cost(d_in**2 * d_out, numbers * problem.W.dtype.itemsize)


class Problem(NamedTuple):
    """What is to be shared, with or without lanes first."""

    W: Array  # [d_in, d_out]
    live: Array  # [d_in, d_out] bool, the weights that are not zero
    H: Array  # [d_in, d_in], moments with the ridge, of a mean energy of one
    G: Array  # [d_in, d_out], the moments of what the response lost
    size: Array  # [d_out], the weights of units


class Choice(NamedTuple):
    """Which value each weight has."""

    values: Array  # [g, k], ascending
    places: Array  # [d_in, d_out]

    def weights(self, problem: Problem) -> Array:
        """The weights, ``[d_in, d_out]``."""
        return jnp.where(problem.live, chosen(self.values, self.places), 0)


def _observed(data: LayerData, free: bool, held: int) -> tuple[Centred, Array]:
    """Rows and moments, and what the response lost, ``[b, n, d_out]``."""
    seen = data.to_fit(held)
    P0 = seen.P if seen.P0 is None else seen.P0
    W0 = data.W0
    every = Observed(seen.X, seen.P, P0, seen.valid, data.moments(held), W0)
    parts = centred(every, free)
    lost = jnp.where(seen.valid[:, :, None], seen.P - P0, 0)
    return parts, lost


@compiled(static_argnames=("free", "kind"))
def _prepared(data: LayerData, free: bool, kind: LayerKind) -> Problem:
    parts, lost = _observed(data, free, kind.held)
    W, scale = data.W0, data.seen.scale
    live = W != 0 if data.allowed is None else (W != 0) & data.allowed
    W = jnp.where(live, W, 0)
    energy = jnp.mean(jnp.diagonal(parts.H, axis1=1, axis2=2), axis=1)[:, None, None]
    eye = jnp.eye(W.shape[1], dtype=W.dtype)[None]
    # without a row all inputs count alike
    H = divide(parts.H, energy) + jnp.where(energy > 0, RIDGE, 1) * eye
    G = matmul(parts.X.transpose(0, 2, 1), lost) * parts.share[:, None, None]
    G = divide(divide(G, energy), scale[:, None, :])
    size = scale**2
    mean = jnp.mean(size, axis=1, keepdims=True)
    size = jnp.maximum(divide(size, mean), FLOOR)
    return Problem(W, live, H, G, size)


@compiled(static_argnames=("free", "kind"))
def _concluded(data: LayerData, W: Array, free: bool, kind: LayerKind) -> Answer:
    good = jnp.isfinite(W).all((1, 2)) & data.finite()
    good &= jnp.isfinite(data.seen.stats["moments"]).all((1, 2))
    bias = data.bias0
    if free and bias is not None:
        parts, lost = _observed(data, free, kind.held)
        rows = jnp.sum(data.to_fit(kind.held).valid, axis=1, dtype=W.dtype)
        rows = jnp.maximum(rows, 1)[:, None]
        move = matmul(parts.mean[:, None, :], data.W0 - W)[:, 0] * data.seen.scale
        bias = bias + divide(move + jnp.sum(lost, axis=1) / rows, data.seen.gain)
        good &= jnp.isfinite(bias).all(1)
    result = jnp.where(good, results.DIRECT, results.NAN).astype(jnp.int32)
    return Answer(W, bias, result, {})


def share_lane(
    problem: Problem, *, count: int, apart: bool, compensate: bool, fit: bool
) -> Array:
    """The weights of one lane with at most ``count`` values, ``[d_in, d_out]``."""
    order = jnp.argsort(-jnp.diagonal(problem.H))
    W, live, G = (a[order] for a in (problem.W, problem.live, problem.G))
    H = problem.H[order][:, order]
    missing = -len(W) % min(BLOCK, len(W))
    W, live, G = (jnp.pad(a, ((0, missing), (0, 0))) for a in (W, live, G))
    mine = Problem(W, live, extended(H[None], missing)[0], G, problem.size)
    values = first_values(mine, count, apart)
    choice = Choice(values, nearest(values, W))
    if compensate:
        choice = compensated(mine, choice)
    if fit or compensate:
        choice = improved(mine, choice, compensate, fit)
    new = choice.weights(mine)[: len(problem.W)]
    return jnp.zeros_like(problem.W).at[order].set(new)


def first_values(problem: Problem, count: int, apart: bool) -> Array:
    """The values of k-means, ``[g, count]``; weights count by what errors cost."""
    mass = jnp.diagonal(problem.H)[:, None] * problem.size[None]
    mass = jnp.where(problem.live, mass, 0)
    W, mass = (a.T if apart else a.reshape(1, -1) for a in (problem.W, mass))

    def one(W: Array, mass: Array) -> Array:
        return k_means(W, mass, start(W, mass, count))

    return jax.vmap(one)(W, mass)


def compensated(problem: Problem, choice: Choice) -> Choice:
    """Goes through the inputs, and lets later ones make up for each change."""
    values = choice.values
    # loops that do not need each other would run at once
    U = upper_factor(after(problem.H, values))
    live = problem.live[None]

    def block(first: Array, part: Array, u: Array) -> tuple[Array, Array]:
        inside = cut(live, first, part.shape[1], axis=1)

        def one(i: Array, w: Array, u: Array) -> tuple[Array, Array]:
            near = chosen(values, nearest(values, w[0]))[None]
            new = jnp.where(cut(inside, i, 1, axis=1), near, 0)
            return new, (w - new) / u

        return sweep(part, u, 1, one)

    size = min(BLOCK, len(problem.W))
    Q = sweep(problem.W[None], U[None], size, block)[0][0]
    return choice._replace(places=nearest(values, Q))


def gradient(problem: Problem, Q: Array) -> tuple[Array, Array]:
    """Half the derivative of the loss of each unit by its weights, and the loss."""
    E = Q - problem.W
    HE = matmul(problem.H, E)
    loss = jnp.sum(problem.size[None] * E * (HE - 2 * problem.G))
    return HE - problem.G, loss


def descended(problem: Problem, choice: Choice) -> Choice:
    """Goes through the inputs, and gives each weight its best value beside others."""
    values, Q = choice.values, choice.weights(problem)
    slope, _ = gradient(problem, Q)
    live, old = problem.live[None], Q[None]

    def block(first: Array, part: Array, h: Array) -> tuple[Array, Array]:
        inside, before = (cut(a, first, part.shape[1], axis=1) for a in (live, old))

        def one(i: Array, slope: Array, h: Array) -> tuple[Array, Array]:
            q = cut(before, i, 1, axis=1)
            near = chosen(values, nearest(values, (q - slope / h)[0]))[None]
            move = jnp.where(cut(inside, i, 1, axis=1), near - q, 0)
            return slope + h * move, -move

        return sweep(part, h, 1, one)

    size = min(BLOCK, len(problem.W))
    moved = sweep(slope[None], problem.H[None], size, block)[1][0]
    return choice._replace(places=nearest(values, Q - moved))


def fitted(problem: Problem, choice: Choice) -> Choice:
    """The values of least loss for these places, with a pull towards the last ones."""
    values, places = choice
    weight = jnp.where(problem.live, problem.size[None], 0)
    slope, _ = gradient(problem, choice.weights(problem))
    energy = jnp.diagonal(problem.H)[:, None] * weight
    curve = sums(energy, places, values)
    pull = PULL * jnp.mean(curve) + jnp.finfo(curve.dtype).tiny

    unit = (curve + pull) ** -0.5  # in which the curvature is about one

    def product(step: Array) -> Array:
        move = unit * step
        E = jnp.where(problem.live, chosen(move, places), 0)
        curved = sums(weight * matmul(problem.H, E), places, values)
        return unit * (curved + pull * move)

    right = -unit * sums(weight * slope, places, values)
    move = unit * cg(product, right, maxiter=INNER)[0]
    return Choice(*ascending(values + move, places))


def improved(problem: Problem, choice: Choice, compensate: bool, fit: bool) -> Choice:
    """The best choice of some rounds; values are fitted, places chosen anew."""

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        now, best, least = carry
        now = descended(problem, now) if compensate else now
        now = fitted(problem, now) if fit else now
        loss = gradient(problem, now.weights(problem))[1]
        better = loss < least
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), now, best)
        return (now, best, jnp.where(better, loss, least)), None

    loss = gradient(problem, choice.weights(problem))[1]
    return jax.lax.scan(step, (choice, choice, loss), length=ROUNDS)[0][1]
