"""How far a network's outputs moved.

Knows arrays; knows no network.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from nettrim_jax._compile import compiled
from nettrim_jax.typing import Array, wide


@compiled()
def deviation_of(before: Sequence[Array], after: Sequence[Array]) -> Array:
    """Relative change of all floating outputs together, in the Frobenius norm."""
    off, size = moved(before, after, before)
    return jnp.sqrt(jnp.where(off == 0, 0, off / size))


@compiled()
def moved(
    before: Sequence[Array], after: Sequence[Array], trained: Sequence[Array]
) -> tuple[Array, Array]:
    """The squared change of all floating outputs, and their squared trained norm."""
    off, size = jnp.zeros(()), jnp.zeros(())
    for new, old, whole in zip(after, before, trained, strict=True):
        if jnp.issubdtype(jnp.result_type(old), jnp.floating):
            dtype = wide(jnp.result_type(old))
            new, old, whole = (jnp.asarray(a, dtype) for a in (new, old, whole))
            # infinities that are meant stay, and are of no size
            move = jnp.where(new == old, 0, new - old)
            whole = jnp.where(jnp.isinf(whole), 0, whole)
            off = off + jnp.sum(move**2).astype(off.dtype)
            size = size + jnp.sum(whole**2).astype(size.dtype)
    return off, size
