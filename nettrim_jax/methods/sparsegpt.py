"""``SparseGPT``: removes weights input by input and adapts those of later inputs.

Knows arrays, patterns and rules; knows no network.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax._trees import STATIC
from nettrim_jax._values import whole
from nettrim_jax.methods.compensation import Treat, cut, extended, sweep, upper_factor
from nettrim_jax.methods.damping import damped, is_damping
from nettrim_jax.methods.patterns import NM, Sparsity
from nettrim_jax.methods.rules import MomentRule
from nettrim_jax.methods.within import Within, apart
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array, ArrayLike


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseGPT(MomentRule):
    r"""Removes weights input by input, and adapts the weights of later inputs.

    With :math:`H = X^\top X + \lambda I` and :math:`U` the upper Cholesky factor of
    :math:`H^{-1}`, each block of inputs loses its weights with the least
    :math:`W_{ij}^2 / U_{ii}^2`. To make up for :math:`W_{ij}`, the weight of each later
    input :math:`k` moves by :math:`-W_{ij} U_{ik} / U_{ii}`. Inputs that are zero on
    all rows lose all weights, even beyond the pattern. (Frantar and Alistarh, 2023.)

    Attributes:
      pattern: the pattern of the weights that may be left, ``Sparsity`` or ``NM``.
      damping: :math:`\lambda` relative to the mean of the diagonal of :math:`X^\top X`:
        a number of at least 0, which may be traced.
      block: number of inputs in a block.

    Raises:
      MethodError: the pattern is of another kind, or a number is out of its range.

    Example:
      >>> import jax
      >>> import nettrim_jax as nt
      >>> W = jax.random.normal(jax.random.key(0), (1, 8, 3))
      >>> X = jax.random.normal(jax.random.key(1), (1, 50, 8))
      >>> new = nt.SparseGPT(nt.NM(2, 4)).answer(W, X.transpose(0, 2, 1) @ X)
      >>> int((new != 0).sum())
      12
    """

    loops: ClassVar[bool] = True

    damping: ArrayLike = 0.01
    block: int = dataclasses.field(default=128, metadata=STATIC)

    def __post_init__(self):
        # also runs when JAX rebuilds the record, with values of any type as leaves
        super().__post_init__()
        inner, _ = apart(self.pattern)
        if not isinstance(inner, Sparsity | NM):
            raise MethodError(
                f"SparseGPT({self.pattern!r}): expected Sparsity or NM; it removes "
                "weights one by one, not in groups"
            )
        damping, block = self.damping, self.block
        plain = isinstance(damping, int | float | str | np.generic)
        if (plain and not is_damping(damping)) or not whole(block) or block < 1:
            raise MethodError(
                f"SparseGPT(damping={damping!r}, block={block!r}): expected a finite "
                "number of at least 0 and an integer of at least 1"
            )

    def check(self) -> None:
        """Raises MethodError if an attribute is not valid."""
        super().check()
        if not is_damping(self.damping):
            raise MethodError(
                f"SparseGPT(damping={self.damping!r}): expected a finite number of at "
                "least 0"
            )

    def answer(self, W: Array, evidence: Array | None) -> Array:
        """New weights, ``[b, d_in, d_out]``, by the sums ``X^T X``."""
        assert evidence is not None
        gram = evidence
        b, d_in, d_out = W.shape
        pattern, allowed = apart(self.pattern)
        H, W = damped(gram, W, self.damping)
        # a block must not split a group of m
        m = pattern.m if isinstance(pattern, NM) else 1
        size = min(max(self.block // m, 1), -(-d_in // m)) * m
        # inputs without weight make all blocks equal, and no other input sees them
        missing = -d_in % size
        U = extended(jax.vmap(upper_factor)(H), missing)
        W = jnp.pad(W, ((0, 0), (0, missing), (0, 0)))
        inside = jnp.ones((b, d_in, d_out), bool) if allowed is None else allowed
        inside = jnp.pad(inside, ((0, 0), (0, missing), (0, 0)))
        if isinstance(pattern, NM):
            remove = _by_groups(pattern, inside)
        else:
            stops = [min(k + size, d_in) for k in range(0, d_in, size)]
            upto = [pattern.nonzeros((b, stop, d_out)) for stop in stops]
            if allowed is not None and pattern.scope == "layer":
                upto = _shared(upto[-1], [jnp.sum(inside[:, :stop]) for stop in stops])
            remove = _by_costs(pattern, inside, upto, size)
        return sweep(W, U, size, remove)[0][:, :d_in]


def _costs(W: Array, U: Array) -> Array:
    """The squared error of removing each weight, once later inputs have adapted."""
    return (W / jnp.diagonal(U, axis1=1, axis2=2)[:, :, None]) ** 2


def _by_groups(pattern: NM, allowed: Array) -> Treat:
    """Removes weights of a block, each group chosen when its first input is reached."""

    def block(start: Array, part: Array, u: Array) -> tuple[Array, Array]:
        inside = cut(allowed, start, part.shape[1], axis=1)

        def group(start: Array, part: Array, u: Array) -> tuple[Array, Array]:
            mine = Within(pattern, cut(inside, start, pattern.m, axis=1))
            return _remove(part, u, mine.keep(_costs(part, u)))

        return sweep(part, u, pattern.m, group)

    return block


def _shared(count: Any, sizes: list[Array]) -> list[Array]:
    """The parts of a count, in proportion to sizes; both are sums up to each part."""
    most = jnp.maximum(sizes[-1], 1).astype(jnp.float32)
    count = jnp.minimum(jnp.asarray(count, jnp.int32), sizes[-1].astype(jnp.int32))
    parts = [jnp.round(count * (size / most)).astype(jnp.int32) for size in sizes[:-1]]
    return [*parts, count]


def _by_costs(pattern: Sparsity, allowed: Array, upto: list[Any], size: int) -> Treat:
    """Removes the weights of a block that cost least, all chosen at its start.

    Of the weights up to the end of each block so many are left as ``upto`` says.
    """
    counts = [jnp.asarray(count, jnp.int32) for count in (0, *upto)]
    left = jnp.diff(jnp.stack(counts))

    def block(start: Array, part: Array, u: Array) -> tuple[Array, Array]:
        inside = cut(allowed, start, size, axis=1)
        costs = jnp.where(inside, _costs(part, u), -jnp.inf)
        chosen = pattern.largest(costs, left[start // size])
        return _remove(part, u, chosen & inside)

    return block


def _remove(W: Array, U: Array, keep: Array) -> tuple[Array, Array]:
    """Removes the weights not kept, input by input; also returns the errors made."""

    def one(i: Array, part: Array, u: Array) -> tuple[Array, Array]:
        kept = cut(keep, i, 1, axis=1)
        return jnp.where(kept, part, 0), jnp.where(kept, 0, part) / u

    return sweep(W, U, 1, one)
