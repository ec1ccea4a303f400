"""Goes through inputs one by one, and lets later ones make up for what was changed.

Knows arrays; knows no pattern and no method.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nettrim_jax._numerics import lower_inverse, matmul
from nettrim_jax.typing import HIGHEST, Array

cut = jax.lax.dynamic_slice_in_dim
put = jax.lax.dynamic_update_slice_in_dim

# of the first input, the rows and the factor of a block: new rows and errors
Treat = Callable[[Array, Array, Array], tuple[Array, Array]]


@jax.custom_jvp
def upper_factor(H: Array) -> Array:
    """The upper Cholesky factor of the inverse.

    In reverse order of rows and columns, the factor of a matrix is an upper one, whose
    inverse is the factor of the inverse.
    """
    return lower_inverse(jnp.linalg.cholesky(H[::-1, ::-1]))[::-1, ::-1]


@upper_factor.defjvp
def _moved_factor(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The factor and its derivative, that of ``U H U^T = I``, by products only."""
    (H,), (move,) = primals, tangents
    U = upper_factor(H)
    S = matmul(matmul(U, (move + move.T) / 2), U.T)
    half = jnp.triu(S) - jnp.diag(jnp.diagonal(S)) / 2
    return U, -matmul(half, U)


def extended(A: Array, more: int) -> Array:
    """Matrices ``[b, n, n]`` with so many rows and columns of the identity after."""
    eye = jnp.eye(A.shape[1] + more, dtype=A.dtype)
    eye = jnp.where(jnp.arange(len(eye)) < A.shape[1], 0, eye)
    return jnp.pad(A, ((0, 0), (0, more), (0, more))) + eye[None]


def sweep(W: Array, U: Array, size: int, treat: Treat) -> tuple[Array, Array]:
    """Treats rows of weights block by block, and moves others by the errors made.

    An error moves row ``k`` by itself times ``-U[i, k]``, where ``U`` is a factor of
    the inverse, which moves later inputs alone, or a whole matrix.

    Args:
      W: ``[b, d_in, d_out]``.
      U: ``[b, d_in, d_in]``.
      size: number of rows of a block, which divides ``d_in``.
      treat: is given the first row's place, the rows, and their part of ``U``.

    Returns:
      The rows as they were treated, unless later errors moved them, and the errors.
    """

    def step(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        W, errors = carry
        start = k * size
        rows = cut(U, start, size, axis=1)
        part, made = treat(
            start, cut(W, start, size, axis=1), cut(rows, start, size, axis=2)
        )
        W = W - jnp.einsum("bik,bij->bkj", rows, made, precision=HIGHEST)
        # the product also changed the block itself
        return put(W, part, start, axis=1), put(errors, made, start, axis=1)

    return jax.lax.fori_loop(0, W.shape[1] // size, step, (W, jnp.zeros_like(W)))
