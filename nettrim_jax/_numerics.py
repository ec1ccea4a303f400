"""Products, norms and quotients, as all other files compute them.

Knows arrays; knows no network.
"""

import jax
import jax.numpy as jnp

from nettrim_jax.typing import HIGHEST, Array


def matmul(a: Array, b: Array) -> Array:
    """``a @ b`` at full precision: bf16 products, TPU's default, make ADMM stall."""
    return jnp.matmul(a, b, precision=HIGHEST)


def norm(
    A: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
) -> Array:
    """Frobenius norm, with a gradient of zero at zero rather than NaN."""
    square = jnp.sum(A**2, axis=axis, keepdims=keepdims)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def divide(a: Array, b: Array) -> Array:
    """``a / b``, and zero where ``b`` is zero."""
    return jnp.where(b != 0, a / jnp.where(b != 0, b, 1), 0)


def after(A: Array, done: Array) -> Array:
    """``A``, which XLA can compute only once ``done`` is.

    XLA may run two loops of one program at once if neither needs the other. On CPU each
    then waits for threads that the other holds, on two cores for ever.
    """
    # a barrier is gone before operations are put in order; a product with zero is not
    one = jax.lax.stop_gradient(done).ravel()[0]
    nothing = 0 * jnp.where(jnp.isfinite(one), one, 0)
    return A + nothing.astype(A.dtype)
