"""Writes one site's answer into the leaves, and measures it.

Where the arrays lie in the host's memory it is done by NumPy, which takes less time
than its compilation for each shape. Elsewhere it is one compiled step, whose static
arguments are plain values, so that a second pruning of the same model compiles nothing.
Knows answers; knows no particular method and no network.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import results
from nettrim_jax._compile import compiled
from nettrim_jax._numerics import divide, numpy_of
from nettrim_jax._trees import from_host, known, on_host
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.methods.base import (
    Answer,
    LayerData,
    LayerKind,
    by_layer,
    each_layer,
    held_out,
    squared_errors,
)
from nettrim_jax.report.figures import UNKNOWN
from nettrim_jax.tracing import entries
from nettrim_jax.tracing.entries import Entries
from nettrim_jax.typing import Array

# figures that a method may have, or the rows
OPTIONAL = dict.fromkeys(("epsilon", "gap", "violation", "held_out_error"), UNKNOWN)


class Measured(NamedTuple):
    """Counts and errors of a site's new weights."""

    nonzeros: Array  # [], int32
    error: Array  # [], relative, on the rows that the solver saw
    held_out_error: Array | None  # [], relative, on the other rows; None without any
    live_inputs: Array  # [], int32, inputs of all lanes that are non-zero on some row
    idle_lanes: Array  # [], int32, lanes whose inputs are zero on all rows
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
    mask: Array  # [b, d_in, d_out] bool, False where a weight was removed
    figures: dict[str, Array]


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
    given = answer, data, place
    if not all(map(on_host, jax.tree.leaves(given))):
        written = _compiled(answer, data, place, kind, keep)
    else:
        with np.errstate(all="ignore"):  # overflow shows in the result
            leaf = place.weights.leaf
            answer, data, place = jax.tree.map(np.asarray, given)
            written = _finish(answer, data, place, kind, keep)
        written = from_host(written, leaf)
    # a NaN that stands for nothing must not come out of a program: jax_debug_nans
    figures = {name: a for name, a in written.figures.items() if a is not None}
    return written._replace(figures=OPTIONAL | figures)


def _finish(
    answer: Answer, data: LayerData, place: Place, kind: LayerKind, keep: bool
) -> Written:
    extreme = _extreme(data, kind.layers)
    xp = numpy_of(extreme)
    extreme = extreme.repeat(len(answer.result) // kind.layers)
    result = xp.where(extreme, np.int32(results.EXTREME), answer.result)
    answer = answer._replace(result=result)
    leaf, bias = write(answer, data, place, keep)
    weights = entries.read(place.weights._replace(leaf=leaf))
    mask = mask_of(answer, data, weights, kind.layers, keep)
    move = None
    if bias is not None and place.bias is not None and data.bias is not None:
        both = entries.read(place.bias._replace(leaf=bias)), entries.read(data.bias)
        new, old = (a.astype(data.seen.X.dtype) for a in both)
        move = (new - old) * data.seen.gain
    measured = measure(data.seen, weights, move, kind)
    before = entries.read(data.weights) != 0
    figures = {
        "before": xp.sum(before, dtype=np.int32),
        "kept": xp.sum(mask, dtype=np.int32),
        "steps": xp.zeros((), np.int32),
        "downstream": xp.zeros((), np.float32),
        **{name: xp.max(a) for name, a in answer.figures.items()},
        "result": results.worst(answer.result),
    }
    return Written(leaf, bias, mask, figures | measured._asdict())


_compiled = compiled(static_argnames=("kind", "keep"))(_finish)


def write(
    answer: Answer, data: LayerData, place: Place, keep: bool
) -> tuple[Array, Array | None]:
    """The leaf of the weights and that of the bias, with an answer in them.

    Lanes of which nothing is known stay as trained. With ``keep`` failed lanes get the
    answer's fallback, or stay as trained if it has none.
    """
    W0, gain = data.W0, data.seen.gain
    xp = numpy_of(W0)
    use = _used(answer, len(W0), keep)
    other = W0 if answer.fallback is None else answer.fallback
    W = xp.where(use[:, None, None], answer.W, other)
    if data.allowed is not None:  # whatever a method makes of the others
        W = xp.where(data.allowed, W, 0)
    factor = place.weights.factor
    nothing = 0 if factor is None else (0 * factor).astype(W.dtype)
    # a removed weight is a zero without a sign, also where it is one only in the leaf
    stored = W if factor is None else divide(W, factor.astype(W.dtype))
    stored = stored.astype(place.weights.leaf.dtype)
    W = xp.where((stored == 0) & (W0 != 0), nothing, W)
    leaf = entries.write(place.weights, W)
    if place.bias is None or data.bias is None or answer.bias is None:
        return leaf, None
    old = entries.read(data.bias)
    # a unit whose response the bias does not move keeps its bias
    use = use[:, None] & (gain != 0)
    bias = xp.where(use, answer.bias.astype(old.dtype), old)
    return leaf, entries.write(place.bias, bias)


def _extreme(data: LayerData, layers: int) -> Array:
    """Whether sums of squares leave the range of their dtype, ``[layers]``.

    Single lanes may vanish, as channels behind a normalisation do.
    """
    seen, W = data.seen, data.W0
    xp = numpy_of(seen.X)
    limits = jnp.finfo(seen.X.dtype)
    # room for sums of many squares, and for the digits of small ones
    low, high = 2.0 ** (limits.minexp // 2 + 7), 2.0 ** (limits.maxexp // 2 - 10)
    rows = [xp.where(seen.valid[:, :, None], a, 0) for a in (seen.X, seen.P)]
    found = xp.zeros(layers, bool)
    for a in (W, *rows):
        size = xp.max(xp.abs(by_layer(a, layers)), axis=(1, 2, 3), initial=0)
        found |= ((size > 0) & (size < low)) | ((size > high) & xp.isfinite(size))
    return found


def _used(answer: Answer, lanes: int, keep: bool) -> Array:
    """The lanes that get the answer, ``[b]``."""
    use = results.good(answer.result) | (not keep)
    use = use.repeat(lanes // len(use))
    return use if answer.live is None else use & answer.live


def mask_of(
    answer: Answer, data: LayerData, W: Array, layers: int, keep: bool
) -> Array:
    """False where a weight was removed, ``[b, d_in, d_out]``.

    It is the pattern's own choice, in which a weight that is left may be zero, as all
    are of a layer that was never trained.
    """
    xp = numpy_of(W)
    mask = W != 0
    if answer.pattern is not None:
        first = by_layer(mask.astype(np.float32), layers)
        chosen = each_layer(_keep, (answer.pattern, first))
        mask = mask | chosen.reshape(mask.shape)
    every = xp.ones(mask.shape, bool) if data.allowed is None else data.allowed
    if answer.fallback is None:  # lanes without an answer stay as they were
        mask = xp.where(_used(answer, len(W), keep)[:, None, None], mask, every)
    return mask & every


def _keep(pattern: Any, score: Array) -> Array:
    return pattern.keep(score)


def allowed(
    weights: Entries, mask: Entries | None, layers: int, revive: bool
) -> Array | None:
    """The weights that may be left, ``[b, d_in, d_out]`` bool; None for all.

    Zeros stay zero, but for layers of zeros alone, which were not pruned: they were
    never trained.
    """
    host = on_host(weights.leaf) and (mask is None or on_host(mask.leaf))
    if host:
        weights, mask = jax.tree.map(np.asarray, (weights, mask))
    found = None
    if not revive:
        found = entries.read(weights) != 0
        some = by_layer(found, layers).any((1, 2, 3))
        found |= ~some.repeat(len(found) // layers)[:, None, None]
    if mask is not None:
        inside = entries.read(mask).astype(bool)
        found = inside if found is None else found & inside
    if weights.factor is not None:  # what is multiplied by zero cannot be any other
        real = weights.factor != 0
        found = real if found is None else found & real
    if found is None or (known(found) and bool(found.all())):
        return None
    return found


def measure(
    seen: Activation, W: Array, move: Array | None, kind: LayerKind
) -> Measured:
    """Counts and errors of weights, as stored, against the trained response."""
    xp = numpy_of(W)
    want = kind.clip(seen.P)
    counts = seen.valid[:, :, None]
    off2 = xp.sum(squared_errors(seen, W, move, kind.clip), axis=(0, 2))
    want2 = xp.sum(xp.where(counts, want**2, 0), axis=(0, 2))

    def relative(rows: np.ndarray) -> Array:
        total, size = xp.sum(off2[rows]), xp.sum(want2[rows])
        return xp.sqrt(xp.where(total == 0, 0, total / size))

    out, rest = held_out(seen.X.shape[1], kind.held)
    held_out_error = relative(out) if kind.held else None
    count = xp.sum(W != 0, dtype=np.int32)
    fires = xp.any((seen.X != 0) & counts, axis=1)
    live = xp.sum(fires, dtype=np.int32)
    idle = xp.sum(~xp.any(fires, axis=1), dtype=np.int32)
    errors = relative(rest), held_out_error
    return Measured(count, *errors, live, idle, *bare(W, kind.channels))


def bare(W: Array, channels: int) -> list[Array]:
    """The numbers of units and of inputs, or channels, that have no weight left."""
    b, _, d_out = W.shape
    linked = (W != 0).reshape(b, -1, channels, d_out)
    xp = numpy_of(W)
    return [
        xp.sum(~xp.any(linked, axis=axes), dtype=np.int32) for axes in ((1, 2), (1, 3))
    ]
