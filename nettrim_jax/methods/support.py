r"""The best weights on a support, for all units of a layer.

Every unit has a support of its own, and so an inverse of its own: that of all inputs,
from which the others are taken. Units take turns, so that memory is bounded.

Knows arrays; knows no pattern and no method.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nettrim_jax._numerics import by_turns, inverse, matmul
from nettrim_jax.typing import Array

BLOCK = 32  # number of inputs that are taken from an inverse by one product
REFINED = 2  # corrections of a solution for the rounding of its inverse
MEMORY = 2**25  # number of bytes that the inverses of units may take that run together


def fitted(H: Array, W: Array, support: Array) -> Array:
    r"""The weights on a support with the least squared error.

    .. math::
        \min_W \; \operatorname{tr} (W - W_0)^\top H (W - W_0)
        \quad\text{s.t.}\quad W_{ij} = 0 \;\text{off the support}

    Units with all their weights on the support stay as they are. The weights have
    derivatives; the support has none.

    Args:
      H: ``[b, d_in, d_in]``, positive definite.
      W: :math:`W_0`, ``[b, d_in, d_out]``.
      support: ``[b, d_in, d_out]`` bool.

    Returns:
      The weights, ``[b, d_in, d_out]``.
    """

    def product(x: Array) -> Array:
        return jnp.where(support, matmul(H, jnp.where(support, x, 0)), x)

    def solve(_: Callable, right: Array) -> Array:
        new = alone(_solved)(jax.lax.stop_gradient(H), support, right)
        return jnp.where(support, new, right)

    right = jnp.where(support, matmul(H, W), 0)
    new = jax.lax.custom_linear_solve(product, right, solve, symmetric=True)
    same = jnp.all(support | (W == 0), axis=1, keepdims=True)
    return jnp.where(same, W, jnp.where(support, new, 0))


def _solved(H: Array, support: Array, right: Array) -> Array:
    """Solves for every unit with the rows and columns of ``H`` on its support."""
    b, d_in, d_out = right.shape
    K = jax.vmap(inverse)(H)
    kept, sides = (by_rows(A, 1)[:, 0] for A in (support, right))
    blocks = blocks_of(~kept)

    def unit(at: Array) -> Array:
        mine = H[at // d_out]
        left = without(K[at // d_out], ~kept[at], blocks)
        return refined(left, mine, kept[at], sides[at][None])[0]

    size = at_once(d_in, right.dtype)
    new = by_turns(jax.vmap(unit), b * d_out, size)
    return new.reshape(b, d_out, d_in).transpose(0, 2, 1)


def refined(K: Array, H: Array, live: Array, right: Array) -> Array:
    """``right K`` on the live inputs, corrected for rounding, ``[units, d_in]``."""
    live = live[None]
    x = matmul(jnp.where(live, right, 0), K)
    for _ in range(REFINED):
        x = x + matmul(jnp.where(live, right - matmul(x, H), 0), K)
    return x


def without(K: Array, gone: Array, blocks: Array) -> Array:
    """The inverse without some inputs, whose rows and columns become zero.

    Args:
      K: the inverse, ``[d_in, d_in]``.
      gone: the inputs to leave out, ``[d_in]`` bool.
      blocks: as many blocks of inputs as this takes, at least.
    """
    d_in = len(K)
    inputs = jnp.full(d_in + -d_in % BLOCK, d_in, jnp.int32)
    slot = jnp.cumsum(gone, dtype=jnp.int32) - 1
    slot = jnp.where(gone, slot, len(inputs))
    every = jnp.arange(d_in, dtype=jnp.int32)
    inputs = inputs.at[slot].set(every, mode="drop")

    def block(at: Array, K: Array) -> Array:
        mine = jax.lax.dynamic_slice_in_dim(inputs, at * BLOCK, BLOCK)
        C = K.at[mine].get(mode="fill", fill_value=0)
        A = C.at[:, mine].get(mode="fill", fill_value=0)
        A = A + jnp.diag((mine == d_in).astype(K.dtype))
        return K - matmul(C.T, matmul(_swept(A), C))

    K = jax.lax.fori_loop(0, blocks, block, K)
    return jnp.where(gone[:, None] | gone[None], 0, K)


def _swept(A: Array) -> Array:
    """The inverse of a small positive definite matrix, by Gauss and Jordan."""
    place = jnp.arange(len(A), dtype=jnp.int32)

    def sweep(k: Array, A: Array) -> Array:
        here = place == k
        row = jnp.where(here, 1, A[k]) / A[k, k]
        column = jnp.where(here, 0, A[:, k])
        rest = jnp.where(here[None], 0, A) - column[:, None] * row[None]
        return jnp.where(here[:, None], row[None], rest)

    return jax.lax.fori_loop(0, len(A), sweep, A)


def blocks_of(gone: Array) -> Array:
    """How many blocks the inputs to leave out take, of the unit with the most."""
    most = jnp.max(jnp.sum(gone, axis=1, dtype=jnp.int32))
    return (most + BLOCK - 1) // BLOCK


def at_once(d_in: int, dtype: Any) -> int:
    """How many units run together."""
    return max(MEMORY // (d_in**2 * dtype.itemsize), 1)


def alone(function: Callable) -> Callable:
    """The function, which ``jax.vmap`` maps by a loop over its entries."""
    call = jax.custom_batching.custom_vmap(function)

    @call.def_vmap
    def _(size: int, mapped: Any, *args: Any) -> tuple[Any, Any]:
        leaves, tree = jax.tree.flatten(args)
        over = jax.tree.leaves(mapped)
        stacks = [a for a, moves in zip(leaves, over, strict=True) if moves]

        def one(parts: list[Array]) -> Any:
            turn = iter(parts)
            every = [
                next(turn) if moves else a
                for a, moves in zip(leaves, over, strict=True)
            ]
            return call(*jax.tree.unflatten(tree, every))

        out = jax.lax.map(one, stacks)
        return out, jax.tree.map(lambda _: True, out)

    return call


def by_rows(A: Array, units: int) -> Array:
    """``[b, d_in, d_out]`` as ``[b * rows, units, d_in]``, with zeros for units."""
    A = jnp.pad(A, ((0, 0), (0, 0), (0, -A.shape[2] % units)))
    return A.transpose(0, 2, 1).reshape(-1, units, A.shape[1])
