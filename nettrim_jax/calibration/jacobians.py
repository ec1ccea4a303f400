"""Sums over samples of products of derivatives by the weights.

They are found by backward passes for some samples at a time, and only sums are kept.

Knows programs of samples; knows no solver and no method.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nettrim_jax._compile import compiled
from nettrim_jax.calibration.samples import Arrays, Curve, Samples
from nettrim_jax.tracing.outer import Outer, Windowed, outer_of
from nettrim_jax.typing import HIGHEST, Array, wide


@compiled(static_argnames=("curve", "samples", "moved"), often=True)
def products(
    curve: Curve,
    samples: Samples,
    moved: tuple[int, ...],
    arrays: Arrays,
) -> dict[int, Array]:
    r"""The diagonal of :math:`\sum_n J_n^\top H_n J_n`, by leaf, in its shape.

    Args:
      curve: has the outputs, whose derivatives are :math:`J_n`, and the second
        derivatives :math:`H_n` of the loss by them, which are one without a loss.
      samples: how the batch falls into samples.
      moved: the leaves to differentiate by.
      arrays: all leaves and the batch.
    """
    outer = outer_of(curve.flat, moved)

    def some(counts: list[Array], keys: Array, rows: Any, pull: Any, bend: Any) -> Any:
        met = {k: one.met(rows[k]) for k, one in outer.items()}

        def along(total: dict[int, Array], at: Array) -> tuple[dict[int, Array], None]:
            v = _directions(samples, counts, keys, at)
            first, other = _both(counts, v, pull, bend)
            sums = {
                k: outer[k].summed(met[k], first[k], other[k])
                if k in outer
                else _summed(first[k], other[k])
                for k in moved
            }
            return jax.tree.map(jnp.add, total, sums), None

        leaves = {k: arrays.leaves[k] for k in moved}
        start = {k: jnp.zeros(a.shape, wide(a.dtype)) for k, a in leaves.items()}
        total = jax.lax.scan(along, start, jnp.arange(samples.directions))[0]
        share = 1 if samples.exact else samples.directions
        return jax.tree.map(lambda a: a / share, total)

    return _over_samples(some, curve, samples, (moved, outer), arrays)


@compiled(static_argnames=("curve", "samples", "moved"), often=True)
def matrix(
    curve: Curve,
    samples: Samples,
    moved: tuple[int, ...],
    arrays: Arrays,
    picks: list[Array],
) -> Array:
    r"""The whole matrix :math:`\sum_n J_n^\top H_n J_n` of some weights, ``[n, n]``.

    Args:
      curve: as for :func:`products`.
      samples: which has all directions.
      moved: leaves, one after the other; the same one may stand more than once.
      arrays: all leaves and the batch.
      picks: of each of these, positions of entries, which make the vector ``[n]``.
    """

    def rows(slopes: dict[int, Array]) -> Array:
        each = zip(moved, picks, strict=True)
        flat = [slopes[k].reshape(samples.at_once, -1)[:, index] for k, index in each]
        return jnp.concatenate(flat, axis=1)

    def some(counts: list[Array], keys: Array, _: Any, pull: Any, bend: Any) -> Any:
        def along(at: Array) -> tuple[Array, Array]:
            v = _directions(samples, counts, keys, at)
            first, other = _both(counts, v, pull, bend)
            return rows(first), rows(other)

        J, HJ = jax.lax.map(along, jnp.arange(samples.directions))
        J, HJ = (a.astype(wide(a.dtype)) for a in (J, HJ))
        return jnp.einsum("osi,osj->ij", J, HJ, precision=HIGHEST)

    return _over_samples(some, curve, samples, (tuple(set(moved)), {}), arrays)


def _over_samples(
    some: Any,
    curve: Curve,
    samples: Samples,
    by: tuple[tuple[int, ...], Mapping[int, Outer | Windowed]],
    arrays: Arrays,
) -> Any:
    """The sum of a function of some samples over all of them, some at a time."""
    moved, outer = by
    leaves, consts, weights = arrays.leaves, arrays.consts, arrays.weights

    def own(a: Array, pick: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(a, pick, 1)

    def mine(pick: Array) -> list[Array]:
        each = zip(arrays.batch, samples.split, strict=True)
        return [own(a, pick) if split else a for a, split in each]

    def outputs(nudged: dict[int, Array], pick: Array) -> Any:
        own = {k: a for k, a in nudged.items() if k not in outer}
        every = [own.get(i, leaf) for i, leaf in enumerate(leaves)]
        nudges = {k: a for k, a in nudged.items() if k in outer}
        return curve.values([*every, *mine(pick)], consts, outer, nudges)

    def counted(values: list[Array], pick: Array, inside: Array) -> list[Array]:
        some = weights
        if weights is not None and any(samples.split):
            some = own(weights, pick)
        return [_counts(a, inside, some, bool(curve.cut)) for a in values]

    def at(start: Array) -> Any:
        pick = start + jnp.arange(samples.at_once)
        inside = pick < samples.count
        pick = jnp.minimum(pick, samples.count - 1)
        still = {k: curve.still(outer[k]) if k in outer else leaves[k] for k in moved}
        still = {
            k: jnp.broadcast_to(a[None], (samples.at_once, *a.shape))
            for k, a in still.items()
        }
        # derivatives of mapped functions: maps of derivatives would hold a copy of all
        # leaves for each sample, and XLA takes long for convolutions with these
        values, pull, rows = jax.vjp(
            lambda nudged: jax.vmap(outputs)(nudged, pick), still, has_aux=True
        )
        bend = curve.bends(lambda pick: [*leaves, *mine(pick)], consts, values, pick)
        counts = jax.vmap(counted)(values, pick, inside)
        keys = jax.vmap(lambda at: jax.random.fold_in(arrays.key, at))(pick)
        return some(counts, keys, rows, pull, bend)

    def add(total: Any, start: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, at(start)), None

    starts = jnp.arange(0, samples.count, samples.at_once)
    shapes = jax.eval_shape(at, starts[0])
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return jax.lax.scan(add, zero, starts)[0]


def _counts(value: Array, inside: Array, weights: Array | None, loss: bool) -> Array:
    """One for the entries of an output that count, else zero, in its dtype."""
    some = inside & ~jnp.isinf(value)  # what is infinite is meant to stay
    if weights is not None:
        mine = weights > 0
        # a loss leaves out positions by itself
        if not loss and value.shape[: mine.ndim] == mine.shape:
            some &= mine.reshape(mine.shape + (1,) * (value.ndim - mine.ndim))
        else:
            some &= jnp.any(mine)
    return some.astype(value.dtype)


def _direction(
    samples: Samples, counts: list[Array], key: Array, at: Array
) -> list[Array]:
    """The direction of this number: that of one output, or of random signs."""
    out, start = [], 0
    for i, one in enumerate(counts):
        if samples.exact:
            mine = (jnp.arange(one.size) + start == at).reshape(one.shape)
            out.append(jnp.where(mine, one, 0))
        else:
            own = jax.random.fold_in(jax.random.fold_in(key, at), i)
            out.append(jax.random.rademacher(own, one.shape, one.dtype) * one)
        start += one.size
    return out


def _directions(
    samples: Samples, counts: list[Array], keys: Array, at: Array
) -> list[Array]:
    """The direction of this number for each of some samples, ``[s, ...]``."""
    return jax.vmap(lambda counts, key: _direction(samples, counts, key, at))(
        counts, keys
    )


def _both(counts: list[Array], v: list[Array], pull: Any, bend: Any) -> tuple[Any, Any]:
    """Derivatives of all samples in a direction, and in that times the curvature."""
    first = pull(v)[0]
    return first, first if bend is None else pull(_times(counts, bend(v)[0]))[0]


def _times(counts: list[Array], values: list[Array]) -> list[Array]:
    # a derivative at an infinite output need not be a number
    return [jnp.where(c != 0, v, 0) for c, v in zip(counts, values, strict=True)]


def _summed(first: Array, other: Array) -> Array:
    """The sum over samples of products of derivatives."""
    dtype = wide(first.dtype)
    return jnp.sum(first.astype(dtype) * other.astype(dtype), axis=0)
