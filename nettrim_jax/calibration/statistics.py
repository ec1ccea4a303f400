"""Statistics, the sums over all rows or batches that a method asks for by name.

A statistic is measured once per batch and summed over the batches, for all methods that
ask for it. A row statistic is summed while the network runs, so in a cascade it is the
pruned network's. A part statistic is the trained network's.

Knows the network; knows no solver and no method.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._numerics import matmul, numpy_of
from nettrim_jax.calibration.batches import Part
from nettrim_jax.calibration.capture import RowStatistic
from nettrim_jax.calibration.sensitivity import sensitivities
from nettrim_jax.tracing.uses import Use
from nettrim_jax.typing import HIGHEST, Array, DTypeLike

CHUNK = 2**22  # numbers of X held at once in a sum over all rows


class PartStatistic(Protocol):
    """A sum over batches, measured on the trained network; hashable."""

    name: ClassVar[str]  # under which a method finds it

    def of(
        self, part: Part, chosen: tuple[int, ...], leaves: Sequence[Array]
    ) -> Mapping[int, Array]:
        """Its values on one batch, ``[b, ...]`` by site; unknown ones are missing."""
        ...


Statistic = RowStatistic | PartStatistic
Asked = Mapping[int, tuple[Statistic, ...]]  # by site


@dataclasses.dataclass(frozen=True)
class Moments:
    """Second moments of a layer's inputs and a one, ``[b, d_in + 1, d_in + 1]``."""

    name: ClassVar[str] = "moments"

    def of_rows(self, use: Use, A: Array, counts: Array, dtype: DTypeLike) -> Array:
        """The sum of ``(X, 1)^T (X, 1)`` over the rows that count, in chunks."""
        folding = use.folding
        at_once = max(1, min(folding.rows, CHUNK // (folding.lanes * folding.d_in)))

        def add(total: Array, start: Array) -> tuple[Array, None]:
            pick = start + jnp.arange(at_once)
            inside, pick = pick < folding.rows, jnp.minimum(pick, folding.rows - 1)
            if folding.ragged:
                inside, pick = (
                    jnp.broadcast_to(a, (folding.lanes, at_once))
                    for a in (inside, pick)
                )
                some = inside & jnp.take_along_axis(counts, pick, axis=1)
            else:
                some = (inside & counts[pick])[None, :]
            X = folding.inputs(A, pick).astype(dtype)
            ones = jnp.ones((*X.shape[:2], 1), dtype)
            X = jnp.where(some[:, :, None], jnp.concatenate([X, ones], axis=2), 0)
            return total + jnp.einsum("bni,bnj->bij", X, X, precision=HIGHEST), None

        size = folding.d_in + 1
        zero = jnp.zeros((folding.lanes, size, size), dtype)
        sums = zero
        if folding.rows:
            sums = jax.lax.scan(add, zero, jnp.arange(0, folding.rows, at_once))[0]
        if use.live is None:
            return sums
        live = np.append(use.live[0], folding.d_in)
        return sums[:, live][:, :, live]


def without_rows(moments: Array, X: Array, valid: Array) -> Array:
    """Subtracts rows from moments; an input of which only rounding is left is zero.

    Args:
      moments: sums, ``[b, d_in + 1, d_in + 1]``.
      X: inputs of the rows to leave out, ``[b, n, d_in]``.
      valid: which of these rows were counted, ``[b, n]``.
    """
    xp = numpy_of(X)
    X = xp.concatenate([X, xp.ones_like(X[:, :, :1])], axis=2)
    X = xp.where(valid[:, :, None], X, 0)
    left = moments - matmul(X.transpose(0, 2, 1), X)
    before, after = (xp.diagonal(a, axis1=1, axis2=2) for a in (moments, left))
    live = after > 64 * jnp.finfo(moments.dtype).eps * before
    return xp.where(live[:, :, None] & live[:, None, :], left, 0)


@dataclasses.dataclass(frozen=True)
class OutputSensitivity:
    """How far errors of a layer's response move the output, ``[b, d_out, d_out]``.

    It is missing for layers that feed no other layer, and for all layers where the
    network has no reverse-mode derivative; see ``sensitivity``.
    """

    name: ClassVar[str] = "sensitivity"

    def of(
        self, part: Part, chosen: tuple[int, ...], leaves: Sequence[Array]
    ) -> Mapping[int, Array]:
        """The sums over one batch, by one backward pass through the trained network."""
        return sensitivities(
            part.network,
            chosen,
            part.network.consts,
            [*leaves, *part.batch],
            part.key,
            part.weights,
        )


def along(asked: Asked) -> tuple[tuple[RowStatistic, ...], ...]:
    """The row statistics of each site."""
    return tuple(
        tuple(one for one in stats if isinstance(one, RowStatistic))
        for stats in asked.values()
    )


def apart(
    asked: Asked, parts: Iterable[Part], leaves: Sequence[Array]
) -> dict[int, dict[str, Array]]:
    """The part statistics by site and name, summed over the parts."""
    out: dict[int, dict[str, Array]] = {k: {} for k in asked}
    for part in parts:
        for one, chosen in _by_statistic(asked).items():
            for k, value in one.of(part, chosen, leaves).items():
                mine = out[k]
                mine[one.name] = mine[one.name] + value if one.name in mine else value
    return out


def _by_statistic(asked: Asked) -> dict[PartStatistic, tuple[int, ...]]:
    found: dict[PartStatistic, list[int]] = {}
    for k, stats in asked.items():
        for one in stats:
            if not isinstance(one, RowStatistic):
                found.setdefault(one, []).append(k)
    return {one: tuple(sites) for one, sites in found.items()}
