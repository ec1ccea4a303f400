"""``LayerOBS``: the optimal brain surgeon for each layer, one weight after another.

Knows arrays, patterns and rules; knows no network.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax._numerics import matmul
from nettrim_jax.methods.base import LayerKind
from nettrim_jax.methods.damping import damped, is_damping
from nettrim_jax.methods.elimination import (
    Floor,
    Grid,
    Removals,
    merged,
    removals,
)
from nettrim_jax.methods.patterns import NM, Blocks, Inputs, Neurons, Shape, Sparsity
from nettrim_jax.methods.rules import MomentRule
from nettrim_jax.methods.support import fitted
from nettrim_jax.methods.within import apart
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array, ArrayLike

REACH = 2e13  # most inputs squared, times units, times removals of a unit
PLACES = 2**24  # number of weights whose places float32 tells apart


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerOBS(MomentRule):
    r"""Removes the weight that costs least, adapts the others, and goes on.

    The error of a unit with trained weights :math:`w_0` is a quadratic,

    .. math::
        \tfrac12 \|X (w - w_0)\|^2 + \tfrac\lambda2 \|w - w_0\|^2
        = \tfrac12 (w - w_0)^\top H (w - w_0), \qquad H = X^\top X + \lambda I .

    With :math:`K` the inverse of :math:`H` for the weights that are left, to remove one
    of them and adapt the others raises it by :math:`w_q^2 / (2 K_{qq})`. The weight of
    the least rise goes; then :math:`w \leftarrow w - K_{\cdot q} w_q / K_{qq}` and
    :math:`K \leftarrow K - K_{\cdot q} K_{q \cdot} / K_{qq}`, and the next one is
    chosen. (Hassibi and Stork, 1993, for a network; Dong, Chen and Pan, 2017, for each
    layer.) What units lose one after another is merged into one order for the layer:
    the least next rise of all goes first (Frantar, Singh and Alistarh, 2022). The
    weights that are left have the least error that is possible with them.

    Groups lose :math:`\tfrac12 w_Q^\top (K_{QQ})^{-1} w_Q`, and with ``NM`` no weight
    goes of a group that has only ``n`` left. Inputs that are zero on all rows lose all
    weights, even beyond the pattern. Blocks of several units whose weights may not all
    be left are chosen as if they could be.

    It takes about :math:`d_{in}^3 d_{out}` operations, a thousand times those of
    :class:`SparseGPT` for a thousand inputs. :func:`nettrim_jax.trace` has every level
    of one layer at once. The bound of Dong et al. on what the layers' errors make of
    the output is ``report.frobenius_bound``, with ``prune(..., bound=True)``.

    Attributes:
      pattern: the pattern of the weights that may be left: ``Sparsity``, ``NM``,
        ``Blocks``, ``Inputs`` or ``Neurons``.
      damping: :math:`\lambda` relative to the mean of the diagonal of :math:`X^\top X`:
        a number of at least 0, which may be traced.

    Raises:
      MethodError: the pattern is of another kind, the damping is out of its range, or
        the layer is too large.

    Example:
      >>> import jax
      >>> import nettrim_jax as nt
      >>> W = jax.random.normal(jax.random.key(0), (1, 8, 3))
      >>> X = jax.random.normal(jax.random.key(1), (1, 50, 8))
      >>> new = nt.LayerOBS(nt.Sparsity(0.75)).answer(W, X.transpose(0, 2, 1) @ X)
      >>> int((new != 0).sum())
      6
    """

    loops: ClassVar[bool] = True

    damping: ArrayLike = 0.01

    def __post_init__(self):
        # also runs when JAX rebuilds the record, with values of any type as leaves
        super().__post_init__()
        inner, _ = apart(self.pattern)
        if not isinstance(inner, Sparsity | NM | Blocks | Inputs | Neurons):
            raise MethodError(
                f"LayerOBS({self.pattern!r}): expected Sparsity, NM, Blocks, Inputs or "
                "Neurons; of any other pattern it does not know what goes together"
            )
        plain = isinstance(self.damping, int | float | str | np.generic)
        if plain and not is_damping(self.damping):
            self._wrong()

    def check(self) -> None:
        """Raises MethodError if an attribute is not valid."""
        super().check()
        if not is_damping(self.damping):
            self._wrong()

    def _wrong(self) -> None:
        raise MethodError(
            f"LayerOBS(damping={self.damping!r}): expected a finite number of at least "
            "0"
        )

    def bind(self, kind: LayerKind, cascade: bool) -> Self:
        """With counts; raises MethodError if it does not fit or is out of reach."""
        bound = super().bind(kind, cascade)
        within_reach(self.pattern, kind.shape, "LayerOBS")
        return bound

    def answer(self, W: Array, evidence: Array | None) -> Array:
        """New weights, ``[b, d_in, d_out]``, by the sums ``X^T X``."""
        assert evidence is not None
        pattern, allowed = apart(self.pattern)
        H, W = damped(evidence, W, self.damping)
        order = order_of(pattern, H, W, allowed)
        # the scores of groups are sums, so the place of each stands at one weight
        score = jnp.where(order.marks, order.place, 0).astype(W.dtype)
        # without an inverse the losses are NaN, and the choice has no meaning
        meant = jnp.all(jnp.isfinite(order.losses))
        new = fitted(H, W, self.pattern.keep(score))
        return jnp.where(meant, new, jnp.nan)


class Order(NamedTuple):
    """The order in which the groups of a layer go."""

    place: Array  # [b, d_in, d_out], int32, of each weight's group, from 1
    marks: Array  # [b, d_in, d_out] bool, one weight of every group that may be left
    losses: Array  # [groups of the layer], the rise of the loss at each place


def order_of(pattern: Any, H: Array, W: Array, allowed: Array | None) -> Order:
    """The order in which a pattern's groups go, from all weights to none.

    Args:
      pattern: ``Sparsity``, ``NM``, ``Blocks``, ``Inputs`` or ``Neurons``.
      H: ``[b, d_in, d_in]``, positive definite.
      W: ``[b, d_in, d_out]``.
      allowed: the weights that may be left, ``[b, d_in, d_out]`` bool; None for all.
    """
    b, d_in, d_out = W.shape
    grid, none = grid_of(pattern, W.shape), jnp.zeros((), jnp.int32)
    floor, column = Floor(none, none), False
    if isinstance(pattern, NM):
        floor = Floor(jnp.asarray(pattern.n, jnp.int32), none)
    elif isinstance(pattern, Sparsity) and pattern.scope == "column":
        left = pattern.nonzeros(W.shape) // (b * d_out)
        floor, column = Floor(none, jnp.asarray(left, jnp.int32)), True
    if isinstance(pattern, Neurons):  # no other input makes up for a whole unit
        H, W = jax.lax.stop_gradient((H, W))
        left = W if allowed is None else fitted(H, W, allowed)
        loss = jnp.sum(left * matmul(H, left), axis=1).reshape(-1, 1) / 2
        found = Removals(jnp.zeros(loss.shape, jnp.int32), loss)
    else:
        found = removals(H, W, allowed, floor, grid)
    every = merged(found, together=not column)
    r, c = grid.inputs, grid.units
    place = every.place.reshape(b, -1, every.place.shape[1]).transpose(0, 2, 1)
    place = jnp.repeat(jnp.repeat(place, r, axis=1), c, axis=2)[:, :d_in, :d_out]
    inside = jnp.ones(W.shape, bool) if allowed is None else allowed
    return Order(place, _first(inside, r, c), every.losses)


def grid_of(pattern: Any, shape: Shape) -> Grid:
    """Which weights of a layer a pattern removes together."""
    _, d_in, d_out = shape
    if isinstance(pattern, NM):
        return Grid(span=pattern.m)
    if isinstance(pattern, Blocks):
        return Grid(*pattern.shape)
    if isinstance(pattern, Inputs):
        return Grid(1, d_out)
    return Grid(d_in, 1) if isinstance(pattern, Neurons) else Grid()


def _first(allowed: Array, r: int, c: int) -> Array:
    """Marks the first weight that may be left of each block of ``r`` times ``c``."""
    if r == c == 1:
        return allowed
    b, d_in, d_out = allowed.shape
    A = jnp.pad(allowed, ((0, 0), (0, -d_in % r), (0, -d_out % c)))
    A = A.reshape(b, A.shape[1] // r, r, A.shape[2] // c, c).transpose(0, 1, 3, 2, 4)
    flat = A.reshape(*A.shape[:3], r * c)
    first = flat & (jnp.cumsum(flat, axis=3, dtype=jnp.int32) == 1)
    first = first.reshape(A.shape).transpose(0, 1, 3, 2, 4)
    return first.reshape(b, first.shape[1] * r, -1)[:, :d_in, :d_out]


def within_reach(pattern: Any, shape: Shape, asker: str) -> None:
    """Raises MethodError if the removals of a layer would take hours."""
    b, d_in, d_out = shape
    if isinstance(pattern, Neurons):
        return
    units = b * -(-d_out // grid_of(pattern, shape).units)
    gone = d_in
    if isinstance(pattern, NM):
        gone = -(-d_in // pattern.m) * (pattern.m - pattern.n)
    elif getattr(pattern, "scope", "") == "column" and pattern.level is not None:
        gone = round(pattern.level * d_in)
    terms = float(d_in) ** 2 * units * gone
    if terms <= REACH and b * d_in * d_out < PLACES:
        return
    raise MethodError(
        f"{asker}({pattern!r}): {d_in} inputs, {units} units and {gone} removals of "
        f"each, {terms:.1e} terms in all; expected at most {REACH:.0e}, and fewer than "
        f"{PLACES} weights. Take SparseGPT or Reconstruct for such a layer, or leave "
        "it out with exclude="
    )
