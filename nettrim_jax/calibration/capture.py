"""Captures rows of each layer's inputs and responses, in one run of the network.

While the network runs, every site's activations are reduced to at most ``rows`` rows,
each drawn with the same chance. Rows carry random priorities, and those of the highest
priority are kept: first per operation, then over uses, loop steps and batches (a
reservoir). They are returned in random order.

Knows the network; knows no solver.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._compile import compiled
from nettrim_jax.calibration.padding import RowWeights
from nettrim_jax.tracing import epilogue, jaxprs
from nettrim_jax.tracing.jaxprs import Op, Ref
from nettrim_jax.tracing.sites import Network
from nettrim_jax.tracing.uses import Use
from nettrim_jax.typing import HIGHEST, Array, DTypeLike, wide


class Activation(NamedTuple):
    """Rows of one site, where ``P = scale * (X W) + t``, before the ReLU if any."""

    X: Array  # [b, n, d_in]
    t: Array  # [b, n, d_out]
    P: Array  # [b, n, d_out], the trained response before the ReLU
    P0: Array | None  # [b, n, d_out], trained weights' response to X; None if it is P
    priority: Array  # [b, n], descending; zero for rows that do not count
    scale: Array  # [b, d_out]
    gain: Array  # [b, d_out], the derivative of P by the bias
    stats: dict[str, Array]  # [b, ...] by the name of a statistic, over all rows

    @property
    def valid(self) -> Array:
        """Which rows count, ``[b, n]``."""
        return self.priority > 0

    def rows(self) -> dict[str, Array]:
        """The fields that have one entry per row."""
        names = ("X", "t", "P", "P0", "priority")
        fields = {name: getattr(self, name) for name in names}
        return {name: a for name, a in fields.items() if a is not None}


class _Rows(NamedTuple):
    X: Array  # [b, m, d_in]
    t: Array  # [b, m, d_out]
    P: Array  # [b, m, d_out]
    priority: Array  # [b, m], zero for rows that do not count


class _Captured(NamedTuple):
    rows: _Rows
    scale: Array  # [b, d_out]
    gain: Array  # [b, d_out]
    stats: dict[str, Array]  # [b, ...]


@runtime_checkable
class RowStatistic(Protocol):
    """A sum over all rows, taken while the network runs; hashable."""

    name: ClassVar[str]  # under which a method finds it

    def of_rows(self, use: Use, A: Array, counts: Array, dtype: DTypeLike) -> Array:
        """The sum over the rows of one operation that count, ``[b, ...]``."""
        ...


class Draw(NamedTuple):
    """The sites to capture and what to keep of them; hashable."""

    chosen: tuple[int, ...]  # positions among the sites
    rows: int  # the largest number of rows per lane
    sums: tuple[tuple[RowStatistic, ...], ...]  # sums over rows, per chosen site


@compiled(static_argnames=("network", "draw"))
def capture(
    network: Network,
    draw: Draw,
    consts: Sequence[Array],
    inputs: Sequence[Array],
    key: Array,
    weights: RowWeights | None = None,
) -> tuple[tuple[Activation, ...], list[Array]]:
    """Runs the network once and keeps rows of the chosen sites.

    Args:
      network: from :func:`nettrim_jax.tracing.sites.trace`.
      draw: the sites, and what to keep of them.
      consts: the constants that the network closes over.
      inputs: the params' arrays, then the batch's.
      key: a PRNG key.
      weights: those of all sites; rows of weight zero do not count.

    Returns:
      One activation per chosen site with ``min(rows, all)`` rows in random order,
      invalid ones last, and the network's outputs.
    """
    sites = [site.uses for site in network.sites]
    visits, visit = visitor(sites, draw, key, weights)
    outputs, seen = jaxprs.evaluate(network.flat, consts, inputs, visits, visit)
    return collect(sites, draw, seen), outputs


def visitor(
    sites: Sequence[Sequence[Use]],
    draw: Draw,
    key: Array,
    weights: RowWeights | None,
) -> tuple[dict[int, list[Use]], jaxprs.Visitor]:
    """The operations to visit, and a visitor that keeps rows for :func:`collect`.

    Args:
      sites: the uses of each site.
      draw: which of the sites, and what to keep of them.
      key: a PRNG key.
      weights: as for :func:`capture`.
    """
    by_visit: dict[int, list[Use]] = {}
    sums: dict[int, tuple[RowStatistic, ...]] = {}
    turns: dict[int, int] = {}
    places: dict[int, int] = {}
    for k, asked in zip(draw.chosen, draw.sums, strict=True):
        for turn, use in enumerate(sites[k]):
            by_visit.setdefault(use.visit, []).append(use)
            sums[use.op.id], turns[use.op.id], places[use.op.id] = asked, turn, k
    # layers of as many rows have the same ones, drawn once; the uses of one matrix not
    shared = {
        id_: use
        for uses in by_visit.values()
        for use in uses
        if _plain(use) and weights is None and not turns[id_ := use.op.id]
    }
    drawn = {
        rows: _ranked(use, draw.rows, key, lambda ref: ref, None)
        for rows, use in {use.folding.rows: use for use in shared.values()}.items()
    }

    def visit(op: Op, read: Callable[[Ref], Array], steps: tuple[Array, ...]) -> Any:
        def keep(use: Use) -> _Captured:
            if use.op.id in shared:
                ranked = drawn[use.folding.rows]
            else:
                turn = turns[use.op.id]
                own = jax.random.fold_in(key, turn) if turn else key
                for step in steps:
                    own = jax.random.fold_in(own, step)
                counts = None
                if weights is not None:
                    counts = weights.rows(places[use.op.id], turn, steps) > 0
                ranked = _ranked(use, draw.rows, own, read, counts)
            return _keep_rows(use, read, ranked, sums[use.op.id])

        return {use.op.id: keep(use) for use in by_visit[op.id]}

    return by_visit, visit


def collect(
    sites: Sequence[Sequence[Use]], draw: Draw, seen: dict[int, Any]
) -> tuple[Activation, ...]:
    """One activation per chosen site, from the rows that a visitor kept."""
    by_op = {op_id: got for visits in seen.values() for op_id, got in visits.items()}
    return tuple(_activation(sites[k], by_op, draw.rows) for k in draw.chosen)


class _Ranked(NamedTuple):
    """The rows of a use in random order."""

    every: Array  # [n] or [b, n], priority of all rows
    priority: Array  # [m] or [b, m], of those to keep, descending
    pick: Array  # [m] or [b, m], their positions


def _plain(use: Use) -> bool:
    """Whether all rows of a use are drawn alike, and once."""
    return not use.loops and not use.folding.ragged


def _ranked(
    use: Use,
    rows: int,
    key: Array,
    read: Callable[[Ref], Any],
    counts: Array | None,
) -> _Ranked:
    folding = use.folding
    priority = jax.random.uniform(key, (folding.rows,), jnp.float32, minval=1e-6)
    if counts is not None:
        priority = jnp.where(counts, priority, 0)
    if folding.ragged:
        members = folding.members(read(use.op.inputs[2]))
        priority = jnp.where(members, priority[None, :], 0)
    # a step of a shared loop keeps only its quota: memory does not grow with the steps
    quota = min(folding.rows, -(-rows * folding.rows // max(use.rows, 1)))
    # without a barrier XLA sorts all rows where only some are read; one barrier for the
    # two crashes the process where the rows are sharded
    first = map(jax.lax.optimization_barrier, jax.lax.top_k(priority, quota))
    return _Ranked(priority, *first)


def _keep_rows(
    use: Use,
    read: Callable[[Ref], Array],
    ranked: _Ranked,
    sums: tuple[RowStatistic, ...],
) -> _Captured:
    folding, chain = use.folding, use.chain
    every, priority, pick = ranked
    Z = read(chain.start)
    A = read(use.act)
    dtype = wide(Z.dtype, A.dtype)
    t, pull = jax.vjp(
        lambda z: epilogue.run(chain.ops, chain.start, z, read), jnp.zeros_like(Z)
    )

    def back(value: Array) -> Array:
        value = epilogue.pull_back(chain.ops, Z, value)
        return folding.result(value, pick).astype(dtype)

    def per_unit(value: Array) -> Array:
        return folding.result(value, pick[..., :1])[:, 0].astype(dtype)

    ones = jnp.ones((folding.lanes, folding.d_out), dtype)
    scale, gain = ones, ones
    if chain.scales:
        scale = per_unit(pull(jnp.ones_like(t))[0])
    if chain.bias is not None and chain.scales:
        bias = chain.bias
        tail, pull = jax.vjp(
            lambda z: epilogue.run(bias.tail, bias.start, z, read),
            jnp.zeros_like(read(bias.start)),
        )
        grown = pull(jnp.ones_like(tail))[0]
        gain = per_unit(epilogue.pull_back(bias.head, Z, grown))
    P, t = back(read(chain.end)), back(t)
    if chain.endless:  # an infinite offset hides the response, kept without it
        hidden = jnp.isinf(t)
        own = folding.result(Z, pick).astype(dtype) * scale[:, None, :]
        P, t = jnp.where(hidden, own, P), jnp.where(hidden, 0, t)
    X = folding.inputs(A, pick).astype(dtype)
    priority = jnp.broadcast_to(priority, (folding.lanes, pick.shape[-1]))
    # a weight that the steps of a loop share has one of these per step, summed later
    stats = {one.name: one.of_rows(use, A, every > 0, dtype) for one in sums}
    if use.live is not None:
        inputs, units = use.live
        still = np.setdiff1d(np.arange(folding.d_in), inputs)
        W = folding.weight(read(use.weight), 0).astype(dtype) * scale[:, None, :]
        t = t + jnp.matmul(X[:, :, still], W[:, still], precision=HIGHEST)
        X, t, P = X[:, :, inputs], t[:, :, units], P[:, :, units]
        scale, gain = scale[:, units], gain[:, units]
    return _Captured(_Rows(X, t, P, priority), scale, gain, stats)


def _activation(
    uses: Sequence[Use], by_op: dict[int, _Captured], rows: int
) -> Activation:
    parts, sums = [], {}
    for use in uses:
        seen = by_op[use.op.id]
        parts.append(jax.tree.map(functools.partial(by_lane, use), seen.rows))
        for name, total in seen.stats.items():
            sums.setdefault(name, []).append(sum_by_lane(use, total))
        lanes = parts[0].X.shape[0]
        first = tuple(slice(None) if lane else 0 for lane in use.lanes)
        scale, gain = (a[first].reshape(lanes, -1) for a in (seen.scale, seen.gain))
    if len(uses) == 1 and all(uses[0].lanes):  # they are in order of priority
        kept = parts[0]._asdict()
    else:
        rows_all = jax.tree.map(lambda *p: jnp.concatenate(p, axis=1), *parts)
        kept = _keep(rows_all._asdict(), rows)
    stats = {name: functools.reduce(jnp.add, each) for name, each in sums.items()}
    return Activation(P0=None, scale=scale, gain=gain, stats=stats, **kept)


def by_lane(use: Use, a: Array) -> Array:
    """``[*loops, b, n, ...]`` as ``[lanes, rows, ...]``; a loop adds to either axis."""
    loops = len(use.lanes)
    own = [i for i, lane in enumerate(use.lanes) if lane]
    shared = [i for i, lane in enumerate(use.lanes) if not lane]
    a = a.transpose([*own, loops, *shared, *range(loops + 1, a.ndim)])
    lanes = math.prod(a.shape[: len(own) + 1])
    return a.reshape(lanes, -1, *a.shape[loops + 2 :])


def sum_by_lane(use: Use, a: Array) -> Array:
    """The sum of each lane, from sums over rows ``[*loops, b, ...]``."""
    return by_lane(use, jnp.expand_dims(a, len(use.lanes) + 1)).sum(1)


def gather(seen: Iterable[tuple[Activation, ...]], rows: int) -> tuple[Activation, ...]:
    """Joins the activations of all batches; keeps the rows of highest priority."""
    kept: tuple[Activation, ...] = ()
    counts: list[int] = []
    for now in seen:
        new = [one.X.shape[1] for one in now]
        counts = [a + b for a, b in zip(counts, new, strict=True)] if counts else new
        kept = _merge(kept, now, rows) if kept else now
    return tuple(
        one._replace(**{name: a[:, :count] for name, a in one.rows().items()})
        for one, count in zip(kept, counts, strict=True)
    )


@compiled(static_argnames="rows")
def _merge(
    ours: tuple[Activation, ...], others: tuple[Activation, ...], rows: int
) -> tuple[Activation, ...]:
    # always pads to ``rows``, so that one program serves all batches of one shape
    out = []
    for one, two in zip(ours, others, strict=True):
        both = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b], axis=1), one.rows(), two.rows()
        )
        missing = max(0, rows - both["priority"].shape[1])
        both = jax.tree.map(
            lambda a: jnp.pad(a, [(0, 0), (0, missing)] + [(0, 0)] * (a.ndim - 2)),  # noqa: B023
            both,
        )
        # a sum must be of all batches, and JAX may fail to differentiate some of them
        both_known = one.stats.keys() & two.stats.keys()
        sums = {name: one.stats[name] + two.stats[name] for name in sorted(both_known)}
        out.append(one._replace(stats=sums, **_keep(both, rows)))
    return tuple(out)


def _keep(rows: dict[str, Array], most: int) -> dict[str, Array]:
    """The ``most`` rows of highest priority of each lane, in order of priority."""
    count = min(most, rows["priority"].shape[1])
    priority, pick = jax.lax.top_k(rows["priority"], count)
    rest = {name: a for name, a in rows.items() if name != "priority"}

    def take(a: Array) -> Array:
        return jnp.take_along_axis(a, pick[:, :, None], axis=1)

    return {**jax.tree.map(take, rest), "priority": priority}
