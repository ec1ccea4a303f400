"""Between a leaf and the matrices within it: read, write, and the mask tree.

Knows arrays and index maps only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from nettrim_jax.typing import Array


class Entries(NamedTuple):
    """Some entries of a leaf, in the shape of ``index``."""

    leaf: Array
    index: Array  # int, positions in the raveled leaf


def read(entries: Entries) -> Array:
    """The entries' values."""
    return entries.leaf.ravel()[entries.index]


def write(entries: Entries, values: Array) -> Array:
    """The leaf with ``values`` as its entries, cast to the leaf's dtype."""
    leaf, index = entries
    flat = leaf.ravel().at[index.ravel()].set(values.astype(leaf.dtype).ravel())
    return flat.reshape(leaf.shape)


def kept(leaf: Array, indices: Sequence[np.ndarray]) -> Array:
    """True where a leaf keeps its entry; outside of ``indices`` all is kept."""
    touched = np.zeros(leaf.size, bool)
    for index in indices:
        touched[index.ravel()] = True
    return (leaf != 0) | jnp.asarray(~touched.reshape(leaf.shape))
