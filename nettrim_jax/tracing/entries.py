"""Reads and writes the entries of leaves that sites consist of, and finds the mask.

Knows arrays and sites; knows no solver.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._compile import compiled
from nettrim_jax._numerics import divide, numpy_of
from nettrim_jax._trees import from_host, on_host
from nettrim_jax.tracing.sites import Network, Site
from nettrim_jax.typing import Array, LeafPath, wide


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Whole:
    """All entries of a leaf, with its axes merged or split and in another order.

    Attributes:
      shape: the shape in which they are read.
      order: the axes of ``shape``, from the slowest in the leaf to the fastest.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]

    def read(self, leaf: Array) -> Array:
        """The entries' values."""
        values = leaf.reshape([self.shape[axis] for axis in self.order])
        return values.transpose([self.order.index(i) for i in range(values.ndim)])

    def write(self, leaf: Array, values: Array) -> Array:
        """The leaf with these values."""
        return values.transpose(self.order).reshape(leaf.shape)


Leaves = Sequence[Array] | Mapping[int, Array]  # by position


class Entries(NamedTuple):
    """Some entries of a leaf, in the shape of ``index``."""

    leaf: Array
    index: Array | Whole  # int, positions in the raveled leaf
    factor: Array | None = None  # by which the program multiplies the entries


def of(leaf: Array, index: np.ndarray) -> Entries:
    """The entries at these positions of a raveled leaf.

    A map of positions is as large as a leaf and has to be sent to the device. So the
    usual one, which transposes a whole leaf, is kept as what it does.
    """
    whole = whole_of(leaf.size, index)
    return Entries(leaf, jax.device_put(index) if whole is None else whole)


def weights_of(site: Site, leaves: Leaves) -> Entries:
    """A site's weights as its rows meet them: times constant factors."""
    found = of(leaves[site.leaf], site.index)
    if site.factor is None:
        return found
    return found._replace(factor=jax.device_put(site.factor.astype(np.float32)))


def whole_of(size: int, index: np.ndarray) -> Whole | None:
    """A map of all positions of a leaf as the order of its axes; None if it is none."""
    if not index.size or index.size != size:
        return None
    steps = [
        int(index[tuple(int(i == axis) for i in range(index.ndim))]) if size > 1 else -1
        for axis, size in enumerate(index.shape)
    ]
    order = sorted(range(index.ndim), key=lambda axis: -steps[axis])
    moved = index.transpose(order)
    want = np.arange(index.size, dtype=index.dtype).reshape(moved.shape)
    return Whole(index.shape, tuple(order)) if np.array_equal(moved, want) else None


def read(entries: Entries) -> Array:
    """The entries' values, times the factor; then in a dtype wide enough for both."""
    leaf, index, factor = entries
    values = index.read(leaf) if isinstance(index, Whole) else leaf.ravel()[index]
    if factor is None:
        return values
    return values.astype(wide(values.dtype, factor.dtype)) * factor


def write(entries: Entries, values: Array) -> Array:
    """The leaf with ``values`` as its entries, cast to the leaf's dtype.

    They are divided by the factor. Entries that do not change keep their bits.
    """
    leaf, index, factor = entries
    if factor is not None:
        same = (factor != 0) & (values == read(entries).astype(values.dtype))
        old = read(entries._replace(factor=None))
        old = old.astype(values.dtype)
        values = numpy_of(values).where(same, old, divide(values, factor))
    values = values.astype(leaf.dtype)
    if isinstance(index, Whole):
        return index.write(leaf, values)
    if isinstance(leaf, np.ndarray):
        flat = leaf.ravel().copy()
        flat[index.ravel()] = values.ravel()
        return flat.reshape(leaf.shape)
    return leaf.ravel().at[index.ravel()].set(values.ravel()).reshape(leaf.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Matrices:
    """A site's weights of a leaf, for those who have the leaf but not the network.

    Attributes:
      path: path of the leaf.
      box: path of its box, or its own path if it has none.
      index: positions in the leaf, ``[b, d_in, d_out]`` int, or the order of its axes.
      factor: by which the program multiplies the weights; None if by nothing.
      shape: ``(layers, lanes of one, d_in, d_out)``.
      channels: number of input channels.
      leaf: shape of the leaf.
    """

    path: LeafPath
    box: LeafPath
    index: Any
    factor: Any
    shape: tuple[int, int, int, int]
    channels: int
    leaf: tuple[int, ...]

    @classmethod
    def of(cls, network: Network, site: Site) -> "Matrices":
        """Those of a site."""
        leaf = network.flat.avals[network.flat.block.inputs[site.leaf]].shape
        index, layers = site.index, site.layers
        return cls(
            site.path,
            network.boxes[site.leaf],
            whole_of(math.prod(leaf), index) or index,
            None if site.factor is None else site.factor.astype(np.float32),
            (layers, len(index) // layers, *index.shape[1:]),
            site.channels,
            leaf,
        )

    def fits(self, leaf: Array) -> bool:
        """Whether a leaf is like the one in which they were found."""
        return tuple(leaf.shape) == self.leaf

    def read(self, leaf: Array, *, plain: bool = False) -> Array:
        """The weights in the leaf, in ``shape``; without the factor if ``plain``."""
        factor = None if plain else self.factor
        return read(Entries(leaf, self.index, factor)).reshape(self.shape)

    def write(self, leaf: Array, values: Array, *, plain: bool = False) -> Array:
        """The leaf with these weights; without the factor if ``plain``."""
        factor = None if plain else self.factor
        values = values.reshape(-1, *self.shape[2:])
        return write(Entries(leaf, self.index, factor), values)


def beside(masks: Iterable[Any], leaves: Iterable[Array]) -> list[Array]:
    """Masks, of which those of NumPy become arrays beside their leaves."""
    return [
        from_host(mask, leaf) if isinstance(mask, np.ndarray) else mask
        for mask, leaf in zip(masks, leaves, strict=True)
    ]


def kept_leaves(
    network: Network,
    chosen: Iterable[int],
    leaves: Sequence[Array],
    masks: Mapping[int, Array],
) -> list[Array]:
    """The mask of every leaf.

    Args:
      network: the network.
      chosen: positions of the sites that were pruned.
      leaves: the leaves with the answers.
      masks: the masks of sites, by position; the others keep what is not zero.

    Returns:
      Bool, in the shapes of the leaves; true for all entries that no site has.
    """
    out: list[Any] = [np.ones(leaf.shape, bool) for leaf in leaves]
    for k in chosen:
        leaf, index = network.sites[k].leaf, network.sites[k].index
        mask: Any = masks.get(k)
        if mask is None:
            mask = read(weights_of(network.sites[k], leaves)) != 0
        if on_host(mask) and isinstance(out[leaf], np.ndarray):
            mask = np.asarray(mask)
        else:
            out[leaf] = jnp.asarray(out[leaf])
        out[leaf] = write(of(out[leaf], index), mask)
    return beside(out, leaves)


class Values(NamedTuple):
    """The weights of one site, and its bias if that moves."""

    weights: Array  # [b, d_in, d_out]
    bias: Array | None  # [b, d_out]


def take(site: Site, leaves: Sequence[Array], moves: bool) -> Values:
    """The site's weights, and its bias if that moves."""
    weights = _read(of(leaves[site.leaf], site.index))
    if site.bias is None or not moves:
        return Values(weights, None)
    leaf, index = site.bias
    return Values(weights, _read(of(leaves[leaf], index)))


def put(site: Site, leaves: Sequence[Array], values: Values) -> list[Array]:
    """The leaves with ``values`` as the site's weights and bias."""
    new = list(leaves)
    entries = of(new[site.leaf], site.index)
    new[site.leaf] = _write(entries, values.weights)
    if site.bias is not None and values.bias is not None:
        leaf, index = site.bias
        new[leaf] = _write(of(new[leaf], index), values.bias)
    return new


_read = compiled()(read)
_write = compiled()(write)
