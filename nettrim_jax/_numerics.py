"""Products, norms and quotients, as all other files compute them.

Knows arrays; knows no network.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from nettrim_jax.typing import HIGHEST, Array


def numpy_of(a: Array) -> Any:
    """The module whose functions take this array: NumPy for NumPy's, or JAX's."""
    return np if isinstance(a, np.ndarray | np.generic) else jnp


def matmul(a: Array, b: Array) -> Array:
    """``a @ b`` at full precision: bf16 products, TPU's default, make ADMM stall."""
    if isinstance(a, np.ndarray):
        return a @ b
    return jnp.matmul(a, b, precision=HIGHEST)


def transposed_matmul(a: Array, b: Array) -> Array:
    """``a^T @ b`` of stacks of matrices, for which the smaller of the two is copied."""
    if a.shape[-1] > b.shape[-1]:
        return matmul(b.mT, a).mT
    return matmul(a.mT, b)


def norm(
    A: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
) -> Array:
    """Frobenius norm, with a gradient of zero at zero rather than NaN."""
    square = jnp.sum(A**2, axis=axis, keepdims=keepdims)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def divide(a: Array, b: Array) -> Array:
    """``a / b``, and zero where ``b`` is zero."""
    xp: Any = np if numpy_of(a) is numpy_of(b) is np else jnp
    return xp.where(b != 0, a / xp.where(b != 0, b, 1), 0)


@jax.custom_jvp
def inverse(H: Array) -> Array:
    """The inverse of one symmetric positive definite matrix."""
    L = lower_inverse(jnp.linalg.cholesky(H))
    return matmul(L.T, L)


@inverse.defjvp
def _moved_inverse(primals: tuple[Array], tangents: tuple[Array]) -> tuple:
    K = inverse(*primals)
    return K, -matmul(matmul(K, tangents[0]), K)


@jax.custom_batching.custom_vmap
def lower_inverse(L: Array) -> Array:
    """The inverse of one lower triangular matrix; it has no derivative of its own."""
    eye = jnp.eye(len(L), dtype=L.dtype)
    return jax.lax.linalg.triangular_solve(L, eye, left_side=True, lower=True)


@lower_inverse.def_vmap
def _lower_inverses(_: int, mapped: list[bool], stack: Array) -> tuple[Array, bool]:
    # on CPU, LAPACK takes one matrix; for a stack XLA makes loops, slow to compile, two
    # of which may wait for each other's threads for ever
    def in_turns(stack: Array) -> Array:
        return jax.lax.map(lower_inverse, stack)

    def at_once(stack: Array) -> Array:
        eye = jnp.broadcast_to(jnp.eye(stack.shape[1], dtype=stack.dtype), stack.shape)
        return jax.lax.linalg.triangular_solve(stack, eye, left_side=True, lower=True)

    del mapped
    return jax.lax.platform_dependent(stack, cpu=in_turns, default=at_once), True


def after(A: Array, done: Array) -> Array:
    """``A``, which XLA can compute only once ``done`` is.

    XLA may run two loops of one program at once if neither needs the other. On CPU each
    then waits for threads that the other holds, on two cores for ever.
    """
    # a barrier is gone before operations are put in order; a product with zero is not
    one = jax.lax.stop_gradient(done).ravel()[0]
    nothing = 0 * jnp.where(jnp.isfinite(one), one, 0)
    return A + nothing.astype(A.dtype)


def by_turns(function: Callable, count: int, size: int) -> Any:
    """A function of places up to ``count``, of at most ``size`` places in each turn.

    The last turn is as long as the others, for which it does the last place again:
    loops of turns of two lengths would run at once, see :func:`after`.
    """
    turns = -(-count // min(size, count))
    chunk = -(-count // turns)
    places = jnp.minimum(jnp.arange(turns * chunk, dtype=jnp.int32), count - 1)
    if turns == 1:
        return function(places)
    out = jax.lax.map(function, places.reshape(turns, chunk))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], out)


def for_each(function: Callable, *stacks: Any) -> Any:
    """A function's values for each entry of some stacks, ``jax.vmap`` of it.

    Of one entry it is the function itself: within ``jax.vmap`` slices at traced places
    are gathers, which XLA takes longer to compile and to run.
    """
    if len(jax.tree.leaves(stacks)[0]) > 1:
        return jax.vmap(function)(*stacks)
    out = function(*jax.tree.map(lambda a: a[0], stacks))
    return jax.tree.map(lambda a: jnp.asarray(a)[None], out)


def in_turn(tree: Any, done: Any) -> Any:
    """Arrays of one problem, which are computed after those of another if traced.

    Known values are computed one after another anyway.
    """
    traced = [a for a in jax.tree.leaves(done) if isinstance(a, jax.core.Tracer)]
    traced = [a for a in traced if jnp.issubdtype(a.dtype, jnp.floating) and a.size]
    if not traced:
        return tree

    def ordered(a: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(a), jnp.floating)
        return after(a, traced[0]) if floating else a

    return jax.tree.map(ordered, tree)
