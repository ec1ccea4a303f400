"""``SparseGPT``: removes weights input by input and adapts those of later inputs.

Knows arrays, patterns and rules; knows no network.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from nettrim_jax._trees import STATIC
from nettrim_jax.methods.patterns import NM, Sparsity
from nettrim_jax.methods.rules import MomentRule
from nettrim_jax.results import MethodError
from nettrim_jax.typing import HIGHEST, Array


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
      damping: :math:`\lambda` relative to the mean of the diagonal of :math:`X^\top X`.
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

    damping: float = dataclasses.field(default=0.01, metadata=STATIC)
    block: int = dataclasses.field(default=128, metadata=STATIC)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.pattern, Sparsity | NM):
            raise MethodError(
                f"SparseGPT({self.pattern!r}): expected Sparsity or NM; it removes "
                "weights one by one, not in groups"
            )
        damping, block = self.damping, self.block
        number = isinstance(damping, int | float) and 0 <= damping < math.inf
        whole = isinstance(block, int) and not isinstance(block, bool)
        if not number or not whole or block < 1:
            raise MethodError(
                f"SparseGPT(damping={damping!r}, block={block!r}): expected a finite "
                "number of at least 0 and an integer of at least 1"
            )

    def answer(self, W: Array, evidence: Array | None) -> Array:
        """New weights, ``[b, d_in, d_out]``, by the sums ``X^T X``."""
        assert evidence is not None
        gram = evidence
        b, d_in, d_out = W.shape
        diagonal = jnp.diagonal(gram, axis1=1, axis2=2)
        dead = diagonal == 0
        W = jnp.where(dead[:, :, None], 0, W)
        damp = self.damping * jnp.mean(diagonal, axis=1)
        lift = damp[:, None] + dead.astype(W.dtype)
        H = gram + lift[:, :, None] * jnp.eye(d_in, dtype=W.dtype)[None]
        U = jax.vmap(_factor)(H)
        pattern = self.pattern
        # a block must not split a group of m
        m = pattern.m if isinstance(pattern, NM) else 1
        size = max(self.block // m, 1) * m
        kept = 0
        for start in range(0, d_in, size):
            stop = min(start + size, d_in)
            part, u = W[:, start:stop], U[:, start:stop, start:stop]
            if isinstance(pattern, NM):
                part, errors = _remove_groups(part, u, pattern)
            else:
                assert isinstance(pattern, Sparsity)
                upto = pattern.nonzeros((b, stop, d_out))
                keep = pattern.largest(_costs(part, u), upto - kept)
                kept = upto
                part, errors = _remove(part, u, keep, lambda i, W, keep: keep)
            rest = jnp.einsum(
                "bij,bik->bjk", U[:, start:stop, stop:], errors, precision=HIGHEST
            )
            W = W.at[:, start:stop].set(part).at[:, stop:].add(-rest)
        return W


def _factor(H: Array) -> Array:
    """The upper Cholesky factor of the inverse."""
    eye = jnp.eye(H.shape[0], dtype=H.dtype)
    inverse = jax.scipy.linalg.cho_solve(
        jax.scipy.linalg.cho_factor(H, lower=True), eye
    )
    return jnp.linalg.cholesky((inverse + inverse.T) / 2).T


def _costs(W: Array, U: Array) -> Array:
    """The squared error of removing each weight, once later inputs have adapted."""
    return (W / jnp.diagonal(U, axis1=1, axis2=2)[:, :, None]) ** 2


def _remove_groups(W: Array, U: Array, pattern: NM) -> tuple[Array, Array]:
    """Removes weights of a block, each group chosen when its first input is reached."""
    b, d_in, d_out = W.shape
    missing = -d_in % pattern.m
    W = jnp.pad(W, ((0, 0), (0, missing), (0, 0)))
    U = jnp.pad(U, ((0, 0), (0, missing), (0, missing)))
    U = U + jnp.diag((jnp.arange(d_in + missing) >= d_in).astype(U.dtype))[None]

    def anew(i: Array, W: Array, keep: Array) -> Array:
        costs = jax.lax.dynamic_slice_in_dim(_costs(W, U), i, pattern.m, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(keep, pattern.keep(costs), i, axis=1)

    def choose(i: Array, W: Array, keep: Array) -> Array:
        return jax.lax.cond(
            i % pattern.m == 0, anew, lambda i, W, keep: keep, i, W, keep
        )

    W, errors = _remove(W, U, jnp.ones(W.shape, bool), choose)
    return W[:, :d_in], errors[:, :d_in]


def _remove(
    W: Array,
    U: Array,
    keep: Array,
    choose: Callable[[Array, Array, Array], Array],
) -> tuple[Array, Array]:
    """Removes the weights not kept, input by input; also returns the errors made.

    At each input ``choose`` may change what is kept of this input and of later ones.
    """

    def step(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        W, errors, keep = carry
        keep = choose(i, W, keep)
        row = U[:, i]  # zero before i
        error = jnp.where(keep[:, i], 0, W[:, i]) / row[:, i, None]
        W = W - row[:, :, None] * error[:, None, :]
        return W, errors.at[:, i].set(error), keep

    start = W, jnp.zeros_like(W), keep
    W, errors, keep = jax.lax.fori_loop(0, W.shape[1], step, start)
    # the steps leave rounding errors in the place of zeros
    return jnp.where(keep, W, 0), errors
