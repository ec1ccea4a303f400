"""Writes one site's answer into the leaves, and measures it.

It is one jitted step on the site's arrays. Static arguments are plain values, so that a
second pruning of the same model compiles nothing.
Knows answers; knows no particular method and no network.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import results
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.methods.base import (
    Answer,
    LayerData,
    LayerKind,
    held_out,
    squared_errors,
)
from nettrim_jax.tracing import entries
from nettrim_jax.tracing.entries import Entries
from nettrim_jax.typing import Array


class Measured(NamedTuple):
    """Counts and errors of a site's new weights."""

    nonzeros: Array  # [], int32
    error: Array  # [], relative, on the rows that the solver saw
    held_out_error: Array  # [], relative, on the other rows
    live_inputs: Array  # [], int32, inputs of all lanes that are non-zero on some row
    bare_units: Array  # [], int32, units of all lanes without a weight left
    bare_inputs: Array  # [], int32, inputs (or channels) without a weight left


class Place(NamedTuple):
    """A site's entries of the leaves: its weights, and its bias if that may move."""

    weights: Entries  # [b, d_in, d_out]
    bias: Entries | None  # [b, d_out]


class Written(NamedTuple):
    """The leaves with a site's answer in them, and the report's columns."""

    leaf: Array
    bias: Array | None
    figures: dict[str, Array]


@functools.partial(jax.jit, static_argnames=("kind", "keep"))
def finish(
    answer: Answer, data: LayerData, place: Place, kind: LayerKind, keep: bool
) -> Written:
    """Writes an answer and measures it.

    Args:
      answer: a method's answer.
      data: the site's trained arrays and its rows.
      place: where the answer goes.
      kind: the static facts about the site.
      keep: whether lanes that failed stay as they were.
    """
    leaf, bias = write(answer, data, place, keep)
    weights = entries.read(place.weights._replace(leaf=leaf))
    move = None
    if bias is not None and place.bias is not None and data.bias is not None:
        both = entries.read(place.bias._replace(leaf=bias)), entries.read(data.bias)
        new, old = (a.astype(data.seen.X.dtype) for a in both)
        move = (new - old) * data.seen.gain
    measured = measure(data.seen, weights, move, kind)
    figures = {
        **{name: jnp.full((), jnp.nan) for name in ("epsilon", "gap", "violation")},
        "steps": jnp.zeros((), jnp.int32),
        "downstream": jnp.zeros(()),
        **{name: jnp.max(a) for name, a in answer.figures.items()},
        "result": results.worst(answer.result),
    }
    return Written(leaf, bias, figures | measured._asdict())


def write(
    answer: Answer, data: LayerData, place: Place, keep: bool
) -> tuple[Array, Array | None]:
    """The leaf of the weights and that of the bias, with an answer in them.

    Lanes of which nothing is known stay as trained. With ``keep`` failed lanes get the
    answer's fallback, or stay as trained if it has none.
    """
    W0, gain = data.W0, data.seen.gain
    use = results.good(answer.result) | (not keep)
    use = jnp.repeat(use, len(W0) // len(use))
    use = use if answer.live is None else use & answer.live
    other = W0 if answer.fallback is None else answer.fallback
    W = jnp.where(use[:, None, None], answer.W, other)
    leaf = entries.write(place.weights, W)
    if place.bias is None or data.bias is None or answer.bias is None:
        return leaf, None
    old = entries.read(data.bias)
    # a unit whose response the bias does not move keeps its bias
    use = use[:, None] & (gain != 0)
    bias = jnp.where(use, answer.bias.astype(old.dtype), old)
    return leaf, entries.write(place.bias, bias)


def measure(
    seen: Activation, W: Array, move: Array | None, kind: LayerKind
) -> Measured:
    """Counts and errors of weights, as stored, against the trained response."""
    want = jnp.maximum(seen.P, 0) if kind.relu else seen.P
    counts = seen.valid[:, :, None]
    off2 = jnp.sum(squared_errors(seen, W, move, kind.relu), axis=(0, 2))
    want2 = jnp.sum(jnp.where(counts, want**2, 0), axis=(0, 2))

    def relative(rows: np.ndarray) -> Array:
        total, size = jnp.sum(off2[rows]), jnp.sum(want2[rows])
        return jnp.sqrt(jnp.where(total == 0, 0, total / size))

    out, rest = held_out(seen.X.shape[1], kind.held)
    held_out_error = relative(out) if kind.held else jnp.full((), jnp.nan)
    count = jnp.sum(W != 0, dtype=jnp.int32)
    fires = jnp.any(jnp.where(counts, seen.X, 0) != 0, axis=1)
    live = jnp.sum(fires, dtype=jnp.int32)
    return Measured(
        count, relative(rest), held_out_error, live, *bare(W, kind.channels)
    )


def bare(W: Array, channels: int) -> list[Array]:
    """The numbers of units and of inputs, or channels, that have no weight left."""
    b, _, d_out = W.shape
    linked = (W != 0).reshape(b, -1, channels, d_out)
    return [
        jnp.sum(~jnp.any(linked, axis=axes), dtype=jnp.int32)
        for axes in ((1, 2), (1, 3))
    ]
