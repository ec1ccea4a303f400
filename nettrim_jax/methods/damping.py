"""Damped second moments, of which there is an inverse.

Knows arrays; knows no method.
"""

import jax.numpy as jnp
import numpy as np

from nettrim_jax._trees import known
from nettrim_jax._values import real
from nettrim_jax.typing import Array, ArrayLike


def is_damping(value: ArrayLike) -> bool:
    """Whether a value is one number of at least 0, as far as it is known."""
    if not real(value) or np.shape(value) != ():
        return False
    return not known(value) or bool(np.isfinite(value) and np.asarray(value) >= 0)


def damped(gram: Array, W: Array, damping: ArrayLike) -> tuple[Array, Array]:
    """The moments plus a multiple of the identity, and weights without dead inputs.

    Args:
      gram: the sums ``X^T X``, ``[b, d_in, d_in]``.
      W: ``[b, d_in, d_out]``; weights of inputs that are zero on all rows become zero.
      damping: the multiple, relative to the mean of the diagonal.
    """
    diagonal = jnp.diagonal(gram, axis1=1, axis2=2)
    dead = diagonal == 0
    W = jnp.where(dead[:, :, None], 0, W)
    damp = jnp.asarray(damping, W.dtype) * jnp.mean(diagonal, axis=1)
    lift = damp[:, None] + dead.astype(W.dtype)
    return gram + lift[:, :, None] * jnp.eye(W.shape[1], dtype=W.dtype)[None], W
