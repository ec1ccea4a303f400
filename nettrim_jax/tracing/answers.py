"""What a solve made of one layer, apart from the leaves that it stands in.

Knows sites and masks; knows no solver.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax.tracing import entries as masks
from nettrim_jax.tracing.entries import Entries
from nettrim_jax.tracing.sites import Site
from nettrim_jax.typing import Array


class Answer(NamedTuple):
    """One solve of a layer, as it is written into leaves."""

    values: Array  # [b, d_in, d_out]
    bias: Array | None  # [b, d_out]; None if it does not move


def take(site: Site, leaves: Sequence[Array], moves: bool) -> Answer:
    """The layer's weights, and its bias if that moves."""
    values = _read(Entries(leaves[site.leaf], jnp.asarray(site.index)))
    if site.bias is None or not moves:
        return Answer(values, None)
    leaf, index = site.bias
    return Answer(values, _read(Entries(leaves[leaf], jnp.asarray(index))))


def put(site: Site, leaves: list[Array], answer: Answer) -> None:
    """Writes an answer into the leaves."""
    entries = Entries(leaves[site.leaf], jnp.asarray(site.index))
    leaves[site.leaf] = _write(entries, answer.values)
    if site.bias is not None and answer.bias is not None:
        leaf, index = site.bias
        leaves[leaf] = _write(Entries(leaves[leaf], jnp.asarray(index)), answer.bias)


_read = jax.jit(masks.read)
_write = jax.jit(masks.write)
