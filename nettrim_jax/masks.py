"""Between a leaf and the matrices within it: read, write, and the mask tree.

Knows arrays and index maps only.
"""

import jax.numpy as jnp
import numpy as np

from nettrim_jax.typing import Array


def read(leaf: Array, index: np.ndarray) -> Array:
    """The entries of a leaf at ``index``, in the shape of ``index``."""
    return leaf.ravel()[index]


def write(leaf: Array, index: np.ndarray, values: Array) -> Array:
    """The leaf with ``values`` at ``index``, cast to the leaf's dtype."""
    flat = leaf.ravel().at[index.ravel()].set(values.astype(leaf.dtype).ravel())
    return flat.reshape(leaf.shape)


def kept(leaf: Array, indices: list[np.ndarray]) -> Array:
    """True where a leaf keeps its entry; outside of ``indices`` all is kept."""
    touched = np.zeros(leaf.shape, bool).ravel()
    for index in indices:
        touched[index.ravel()] = True
    return (leaf != 0) | jnp.asarray(~touched.reshape(leaf.shape))
