"""Reads and writes the entries of leaves that sites consist of, and finds the mask.

Knows arrays and sites; knows no solver.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax.tracing.sites import Network, Site
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
    """True where an entry of a leaf is not zero, or is not among ``indices``."""
    touched = np.zeros(leaf.size, bool)
    for index in indices:
        touched[index.ravel()] = True
    return (leaf != 0) | jnp.asarray(~touched.reshape(leaf.shape))


def kept_leaves(
    network: Network, chosen: Iterable[int], leaves: Sequence[Array]
) -> list[Array]:
    """The mask of every leaf; all entries of a leaf that was not pruned are true."""
    indices: dict[int, list[np.ndarray]] = {}
    for k in chosen:
        site = network.sites[k]
        indices.setdefault(site.leaf, []).append(site.index)
    return [
        kept(leaf, indices[i]) if i in indices else jnp.ones(leaf.shape, bool)
        for i, leaf in enumerate(leaves)
    ]


class Values(NamedTuple):
    """The weights of one site, and its bias if that moves."""

    weights: Array  # [b, d_in, d_out]
    bias: Array | None  # [b, d_out]


def take(site: Site, leaves: Sequence[Array], moves: bool) -> Values:
    """The site's weights, and its bias if that moves."""
    weights = _read(Entries(leaves[site.leaf], jnp.asarray(site.index)))
    if site.bias is None or not moves:
        return Values(weights, None)
    leaf, index = site.bias
    return Values(weights, _read(Entries(leaves[leaf], jnp.asarray(index))))


def put(site: Site, leaves: Sequence[Array], values: Values) -> list[Array]:
    """The leaves with ``values`` as the site's weights and bias."""
    new = list(leaves)
    entries = Entries(new[site.leaf], jnp.asarray(site.index))
    new[site.leaf] = _write(entries, values.weights)
    if site.bias is not None and values.bias is not None:
        leaf, index = site.bias
        new[leaf] = _write(Entries(new[leaf], jnp.asarray(index)), values.bias)
    return new


_read = jax.jit(read)
_write = jax.jit(write)
