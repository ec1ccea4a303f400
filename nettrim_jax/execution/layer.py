"""One layer within a pruning: its program, its answer written back, what that cost.

Jitted steps on one site's arrays; whatever is static is a plain value, so that a
second pruning of the same model compiles nothing. Knows methods and masks; knows no
network.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import results
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.convex import programs
from nettrim_jax.convex.programs import Program
from nettrim_jax.convex.projection import matmul
from nettrim_jax.convex.solution import Solution
from nettrim_jax.methods.nettrim import NetTrim
from nettrim_jax.methods.quadratic import Seen
from nettrim_jax.methods.rules import Rule
from nettrim_jax.tracing import entries as masks
from nettrim_jax.tracing.entries import Entries
from nettrim_jax.typing import Array


class Measured(NamedTuple):
    """What a site's new weights are and do."""

    nonzeros: Array  # [], int32
    error: Array  # [], relative, rows that the solver saw
    held_out_error: Array  # [], relative, the others
    live_inputs: Array  # [], int32, inputs of all lanes that are ever non-zero
    bare_units: Array  # [], int32, units of all lanes without a weight left
    bare_inputs: Array  # [], int32, inputs, or a convolution's channels, likewise


class Place(NamedTuple):
    """Where a site's weights stand, and its bias if that may move."""

    weights: Entries  # [b, d_in, d_out]
    bias: Entries | None  # [b, d_out]


def split(n: int, held: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are held out, and the others.

    Rows come in random order, those that do not count last, so every so-manieth
    takes the same share of those that do.
    """
    out = np.arange(held) * n // max(held, 1) + (n // max(held, 1)) // 2
    return out, np.setdiff1d(np.arange(n), out)


def held_out_rows(n: int, share: float) -> int:
    """How many of ``n`` rows no solver sees; at least one is left for it."""
    return min(round(share * n), n - 1)


@functools.partial(jax.jit, static_argnames=("relu", "bias", "held", "fed"))
def program(
    method: NetTrim,
    place: Place,
    seen: Activation,
    relu: bool,
    bias: str,
    held: int,
    fed: bool,
) -> tuple[Program, Array]:
    """The site's program on all rows but those held out.

    With it comes each lane's relative budget, ``[b]``.
    """
    if bias == "penalized" and place.bias is not None:
        # all of it is to be found, so none of it stays in t
        own = masks.read(place.bias).astype(seen.t.dtype)
        seen = seen._replace(t=seen.t - (own * seen.gain)[:, None, :])
    _, rest = split(seen.X.shape[1], held)
    seen = seen._replace(**{name: a[:, rest] for name, a in seen.rows().items()})
    return method.program(seen, relu, bias, fed)


@jax.jit
def reweight(program: Program, solution: Solution) -> Program:
    """The next round's program of every lane, from the first and its last answer."""
    return jax.vmap(programs.reweighted)(program, solution.W, solution.bias)


@functools.partial(jax.jit, static_argnames=("bias", "held", "keep"))
def write(
    place: Place,
    seen: Activation,
    solution: Solution,
    bias: str,
    held: int,
    keep: bool,
) -> tuple[Array, Array | None]:
    """The leaf and the bias leaf with a solution in them.

    ``keep`` leaves lanes whose solve did not converge as they were.
    """
    # without a row that counted nothing is known of the weights: they stay
    use = (solution.result == results.CONVERGED) | (not keep)
    _, rest = split(seen.X.shape[1], held)
    use = use & jnp.any(seen.valid[:, rest], axis=1)
    W = _divide(solution.W, seen.scale[:, None, :])
    old = masks.read(place.weights).astype(W.dtype)
    leaf = masks.write(place.weights, jnp.where(use[:, None, None], W, old))
    if place.bias is None:
        return leaf, None
    old = masks.read(place.bias)
    move = _divide(solution.bias, seen.gain)
    new = move if bias == "penalized" else old.astype(move.dtype) + move
    # a unit that the bias cannot reach keeps it
    use = use[:, None] & (seen.gain != 0)
    new = jnp.where(use, new.astype(old.dtype), old)
    return leaf, masks.write(place.bias, new)


@functools.partial(jax.jit, static_argnames=("layers", "held", "keep"))
def by_rule(
    rule: Rule,
    trained: Place,
    place: Place,
    seen: Activation,
    layers: int,
    held: int,
    keep: bool,
) -> tuple[Array, Array]:
    """The leaf with what a rule leaves of the trained weights; a code per lane.

    The second moments are those of all rows but the ones held out. The lanes belong to
    so many ``layers``, whose patterns are apart: the steps of a loop. Arrays of the
    rule have one entry for each. ``keep`` leaves
    those that are not finite as they were.
    """
    old = masks.read(trained.weights)
    W, gram = old.astype(seen.X.dtype), None
    out, rest = split(seen.X.shape[1], held)
    use = jnp.ones(W.shape[:1], bool)
    if seen.moments is not None:
        gram = _without(seen.moments, seen, out)[:, :-1, :-1]
        # without a row that counted nothing is known of the weights: they stay
        use = jnp.any(seen.valid[:, rest], axis=1)

    def apart(a: Array) -> Array:
        return a.reshape(layers, -1, *a.shape[1:])

    def answer(rule: Rule, W: Array, gram: Array | None) -> Array:
        return rule.answer(W, gram)

    new = jax.vmap(answer)(rule, *jax.tree.map(apart, (W, gram))).reshape(W.shape)
    good = jnp.isfinite(new).all((1, 2))
    answers = jnp.where(seen.valid[:, :, None], seen.P, 0)
    for a in (answers, gram):
        good &= True if a is None else jnp.isfinite(a).all((1, 2))
    good = _together(good, layers)
    use = use & (good | (not keep))
    new = jnp.where(use[:, None, None], new, W)
    # what a rule lets stay keeps every bit
    leaf = masks.write(place.weights, jnp.where(new == W, old, new.astype(old.dtype)))
    result = jnp.where(good, results.DIRECT, results.NAN).astype(jnp.int32)
    return leaf, result


@jax.jit
def start(place: Place, seen: Activation, support: Array) -> Array:
    """The trained weights on their support as a program has them, times the scale."""
    W = masks.read(place.weights).astype(seen.X.dtype)
    return jnp.where(support, W * seen.scale[:, None, :], 0)


@functools.partial(jax.jit, static_argnames=("relu", "held", "fed"))
def by_refit(
    trained: Place,
    place: Place,
    seen: Activation,
    support: Array,
    W: Array,
    move: Array,
    relu: bool,
    held: int,
    fed: bool,
) -> tuple[Array, Array | None, Array]:
    """The leaf and the bias leaf with fitted values in them, and a code per lane.

    Units that they serve no better, as stored, keep the trained values on the support.
    Whole layers stay as trained; so do whole units that no pruned layer feeds.

    Args:
      trained: where the trained weights stand.
      place: where the new ones go.
      seen: what the site saw.
      support: where weights may stay, ``[b, d_in, d_out]``.
      W: values as the program has them.
      move: what they add to the response, ``[b, d_out]``.
      relu: whether a ReLU follows.
      held: rows kept from the fit.
      fed: whether layers that are fitted feed this one.
    """
    old = masks.read(trained.weights)
    before = jnp.where(support, old, 0)
    scale = seen.scale[:, None, :]
    # weights that a scale of zero hides are as good as any
    after = jnp.where(scale != 0, _divide(W, scale).astype(old.dtype), before)
    bias = None if trained.bias is None else masks.read(trained.bias)
    if bias is not None:
        moved = _moved(bias, move, seen.gain)
        move = (moved.astype(move.dtype) - bias.astype(move.dtype)) * seen.gain
    _, rest = split(seen.X.shape[1], held)
    rows = seen._replace(**{name: a[:, rest] for name, a in seen.rows().items()})
    worst = jnp.sum(_squares(rows, before, None, relu), axis=1)
    off = jnp.sum(_squares(rows, after, move, relu), axis=1)
    good = jnp.isfinite(W).all((1, 2)) & jnp.isfinite(worst).all(1)
    good &= jnp.isfinite(jnp.where(rows.valid[:, :, None], rows.P, 0)).all((1, 2))
    whole = jnp.all(support, axis=(1, 2) if fed else 1, keepdims=True)[:, 0]
    use = good[:, None] & (off <= worst) & ~whole & jnp.any(rows.valid, 1)[:, None]
    leaf = masks.write(place.weights, jnp.where(use[:, None, :], after, before))
    result = jnp.where(good, results.DIRECT, results.NAN).astype(jnp.int32)
    if place.bias is None or bias is None:
        return leaf, None, result
    return leaf, masks.write(place.bias, jnp.where(use, moved, bias)), result


@functools.partial(jax.jit, static_argnames=("held", "layers", "downstream"))
def exact(
    trained: Place, seen: Activation, held: int, layers: int, downstream: float
) -> tuple[Seen, Array]:
    """What is needed to prune to an exact budget, ``[layers, b, ...]``.

    With it comes the share of the loss that does look at the network's output.
    """
    assert seen.moments is not None
    out, rest = split(seen.X.shape[1], held)
    W0 = masks.read(trained.weights).astype(seen.X.dtype) * seen.scale[:, None, :]
    P0 = seen.P if seen.P0 is None else seen.P0
    X, P, P0, valid = (a[:, rest] for a in (seen.X, seen.P, P0, seen.valid))
    M, share = _blend(seen, layers, downstream)
    every = Seen(X, P, P0, valid, _without(seen.moments, seen, out), W0, M)
    apart = jax.tree.map(lambda a: a.reshape(layers, -1, *a.shape[1:]), every)
    return apart, share


def _blend(seen: Activation, layers: int, share: float) -> tuple[Array | None, Array]:
    """What errors of units count for: this share of it at the network's output.

    With it comes the share itself, less where nothing is known of some layers.
    """
    if seen.metric is None or not share:
        return None, jnp.zeros((), seen.X.dtype)
    scale = seen.scale.astype(seen.X.dtype)
    M = seen.metric.astype(scale.dtype)
    M = _divide(M, scale[:, :, None] * scale[:, None, :])
    b, d_out = scale.shape
    # the lanes of a layer share the pattern's count, so they are measured together
    size = jnp.trace(M, axis1=1, axis2=2).reshape(layers, -1).mean(1) / d_out
    size = jnp.repeat(size, b // layers)
    eye = jnp.eye(d_out, dtype=M.dtype)[None]
    # where nothing is known of what follows, all errors are alike
    known = _together(jnp.isfinite(M).all((1, 2)), layers)
    known &= jnp.isfinite(size) & (size > 0)
    size = jnp.where(known, size, 1)[:, None, None]
    M = jnp.where(known[:, None, None], M / size, eye)
    # eigenvectors of equal eigenvalues, those of dead units, have no derivative
    M = jax.lax.stop_gradient(share * M + (1 - share) * eye)
    return M, share * jnp.mean(known, dtype=M.dtype)


@functools.partial(jax.jit, static_argnames=("layers", "held", "keep"))
def by_pattern(
    trained: Place,
    place: Place,
    seen: Activation,
    W: Array,
    move: Array,
    layers: int,
    held: int,
    keep: bool,
) -> tuple[Array, Array | None, Array]:
    """The leaf and the bias leaf with an exact budget's weights, and a code per lane.

    Args:
      trained: where the trained weights stand.
      place: where the new ones go.
      seen: what the site saw.
      W: weights times the scale, ``[b, d_in, d_out]``.
      move: what is to be added to the response, ``[b, d_out]``.
      layers: to how many the lanes belong, each with a pattern of its own.
      held: rows kept from the solver.
      keep: whether layers that are not finite stay as trained.
    """
    old, scale = masks.read(trained.weights), seen.scale[:, None, :]
    answers = jnp.where(seen.valid[:, :, None], seen.P, 0)
    good = jnp.isfinite(move).all(1)
    for a in (W, answers, seen.moments):
        good &= True if a is None else jnp.isfinite(a).all((1, 2))
    good = _together(good, layers)
    _, rest = split(seen.X.shape[1], held)
    # without a row that counted nothing is known of the weights: they stay
    use = jnp.any(seen.valid[:, rest], axis=1) & (good | (not keep))
    new = _divide(W, scale).astype(old.dtype)
    # what stays keeps every bit
    same = W == old.astype(W.dtype) * scale
    # all of it, or what is not zero: a scale of zero hides weights
    same &= (W != 0) | jnp.all(same)
    new = jnp.where(same | ~use[:, None, None], old, new)
    leaf = masks.write(place.weights, new)
    result = jnp.where(good, results.DIRECT, results.NAN).astype(jnp.int32)
    if trained.bias is None or place.bias is None:
        return leaf, None, result
    bias = masks.read(trained.bias)
    moved = jnp.where(use[:, None], _moved(bias, move, seen.gain), bias)
    return leaf, masks.write(place.bias, moved), result


def _moved(bias: Array, move: Array, gain: Array) -> Array:
    """The bias that moves the response so far; one that cannot reach it stays."""
    new = bias.astype(move.dtype) + _divide(move, gain)
    return jnp.where(gain != 0, new.astype(bias.dtype), bias)


def _together(good: Array, layers: int) -> Array:
    """Whether all lanes of a layer are good: they share the pattern's count."""
    return jnp.repeat(good.reshape(layers, -1).all(1), len(good) // layers)


def _without(moments: Array, seen: Activation, out: np.ndarray) -> Array:
    """Second moments less those of some rows; rounding leaves no input alive."""
    X = jnp.concatenate([seen.X[:, out], jnp.ones_like(seen.X[:, out, :1])], axis=2)
    X = jnp.where(seen.valid[:, out, None], X, 0)
    left = moments - matmul(X.transpose(0, 2, 1), X)
    before, after = (jnp.diagonal(a, axis1=1, axis2=2) for a in (moments, left))
    live = after > 64 * jnp.finfo(moments.dtype).eps * before
    return jnp.where(live[:, :, None] & live[:, None, :], left, 0)


@functools.partial(jax.jit, static_argnames=("relu", "held", "channels"))
def measure(
    place: Place,
    seen: Activation,
    leaf: Array,
    bias: Array | None,
    relu: bool,
    held: int,
    channels: int,
) -> Measured:
    """Counts and errors of new leaves, as they are stored, against the trained."""
    W, move = masks.read(place.weights._replace(leaf=leaf)), None
    if place.bias is not None and bias is not None:
        both = place.bias._replace(leaf=bias), place.bias
        new, old = (masks.read(entries).astype(seen.X.dtype) for entries in both)
        move = (new - old) * seen.gain
    want = jnp.maximum(seen.P, 0) if relu else seen.P
    counts = seen.valid[:, :, None]
    off2 = jnp.sum(_squares(seen, W, move, relu), axis=(0, 2))
    want2 = jnp.sum(jnp.where(counts, want**2, 0), axis=(0, 2))

    def relative(rows: np.ndarray) -> Array:
        total, size = jnp.sum(off2[rows]), jnp.sum(want2[rows])
        return jnp.sqrt(jnp.where(total == 0, 0, total / size))

    out, rest = split(seen.X.shape[1], held)
    held_out = relative(out) if held else jnp.full((), jnp.nan)
    count = jnp.sum(W != 0, dtype=jnp.int32)
    fires = jnp.any(jnp.where(counts, seen.X, 0) != 0, axis=1)
    live = jnp.sum(fires, dtype=jnp.int32)
    return Measured(count, relative(rest), held_out, live, *bare(W, channels))


def _squares(seen: Activation, W: Array, move: Array | None, relu: bool) -> Array:
    """Squared errors of weights as stored, after the ReLU, ``[b, n, d_out]``.

    ``move`` is what a bias adds, ``[b, d_out]``; rows that do not count have none.
    """
    answer = matmul(seen.X, W.astype(seen.X.dtype) * seen.scale[:, None, :]) + seen.t
    answer = answer if move is None else answer + move[:, None, :]
    want = seen.P
    if relu:
        answer, want = jnp.maximum(answer, 0), jnp.maximum(want, 0)
    return jnp.where(seen.valid[:, :, None], (answer - want) ** 2, 0)


def bare(W: Array, channels: int) -> list[Array]:
    """How many units and how many inputs, or channels, have no weight left."""
    b, _, d_out = W.shape
    linked = (W != 0).reshape(b, -1, channels, d_out)
    return [
        jnp.sum(~jnp.any(linked, axis=axes), dtype=jnp.int32)
        for axes in ((1, 2), (1, 3))
    ]


def _divide(a: Array, b: Array) -> Array:
    return jnp.where(b != 0, a / jnp.where(b != 0, b, 1), 0)
