r"""Greedy elimination: the order in which groups of weights go, each at least loss.

With :math:`K = H^{-1}`, to make the weight :math:`q` of a unit zero and adapt its
others raises half the squared error,
:math:`\tfrac12 (w - w_0)^\top H (w - w_0)`, by :math:`w_q^2 / (2 K_{qq})`, and

.. math::
    w \leftarrow w - \frac{w_q}{K_{qq}} K_{\cdot q}, \qquad
    K \leftarrow K - \frac{K_{\cdot q} K_{q \cdot}}{K_{qq}} .

So the columns :math:`K_{\cdot q} / \sqrt{K_{qq}}` are those of a Cholesky factor of
:math:`K`, whose pivots are chosen on the way. They are taken off :math:`K` in blocks,
and within a block off the one row that is needed.

Knows arrays; knows no pattern and no method.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax._numerics import by_turns, divide, inverse, matmul
from nettrim_jax.methods.support import (
    BLOCK,
    alone,
    at_once,
    blocks_of,
    by_rows,
    refined,
    without,
)
from nettrim_jax.typing import HIGHEST, Array


class Grid(NamedTuple):
    """Which weights go together, and which groups may not all go; hashable."""

    inputs: int = 1  # number of inputs of a group
    units: int = 1  # number of units of a group
    span: int = 1  # number of consecutive groups of which ``Floor.span`` stay


class Floor(NamedTuple):
    """How many groups have to stay; int32."""

    span: Array  # [], of each span of a unit
    unit: Array  # [], of each unit


class Removals(NamedTuple):
    """The groups in the order in which they go, of each row of groups.

    A row of groups has the inputs of as many units as a group has, ``rows`` in all.
    """

    group: Array  # [rows, steps], int32; ``steps`` where no group goes
    loss: Array  # [rows, steps], the rise of half the squared error; NaN without H^-1


def removals(
    H: Array, W: Array, allowed: Array | None, floor: Floor, grid: Grid
) -> Removals:
    """The order in which the groups of a layer go, for every unit by itself.

    Where a group has several units and these may keep different weights, it is chosen
    as if they could keep what any of them may.

    Args:
      H: ``[b, d_in, d_in]``, positive definite.
      W: ``[b, d_in, d_out]``, the minimum, from which weights are taken.
      allowed: the weights that may be left, ``[b, d_in, d_out]`` bool; None for all.
      floor: how many groups stay.
      grid: which weights go together.

    Returns:
      The removals, with ``b * ceil(d_out / grid.units)`` rows.
    """
    # nothing here has a derivative, and layers that are mapped over run one by one, so
    # that memory is bounded and a loop ends once its own layer is done
    given = jax.lax.stop_gradient((H, W, allowed))
    return alone(functools.partial(_removals, grid=grid))(*given, floor)


def _removals(
    H: Array, W: Array, allowed: Array | None, floor: Floor, grid: Grid
) -> Removals:
    b, d_in, d_out = W.shape
    missing = -d_in % (grid.inputs * grid.span)
    size = d_in + missing
    rows = by_rows(W, grid.units)  # [rows, units, d_in]
    sides = by_rows(matmul(H, W), grid.units)
    count = len(rows)
    K = jax.vmap(inverse)(H)
    kept, fewer = jnp.ones((count, d_in), bool), jnp.zeros((), jnp.int32)
    if allowed is not None:
        kept = jnp.any(by_rows(allowed, grid.units), axis=1)
        fewer = blocks_of(~kept)

    def one(at: Array, blocks: Array) -> Removals:
        """The removals of one row of groups."""
        lane, live = at // (count // b), kept[at]
        mine, row = K[lane], rows[at]
        if allowed is not None:
            mine = without(mine, ~live, fewer)
            row = refined(mine, H[lane], live, sides[at])
        mine = jnp.pad(mine, ((0, missing), (0, missing)))
        row, live = jnp.pad(row, ((0, 0), (0, missing))), jnp.pad(live, (0, missing))
        return _eliminate(mine, row, live, floor, blocks, grid)

    per = max(BLOCK // grid.inputs, 1)
    steps = size // grid.inputs
    # what stays takes no step
    stay = jnp.maximum(floor.unit, (steps // grid.span - 1) * floor.span)
    blocks = (jnp.clip(steps - stay, 0, steps).astype(jnp.int32) + per - 1) // per
    turn = jax.vmap(one, (0, None))
    return by_turns(lambda at: turn(at, blocks), count, at_once(size, W.dtype))


class _State(NamedTuple):
    """Where the elimination of one row of groups stands, within a block."""

    W: Array  # [units, d_in]
    V: Array  # [block, d_in], columns that are still to be taken off the inverse
    D: Array  # [groups, inputs, inputs], the inverse within each group
    live: Array  # [d_in]
    alive: Array  # [groups]
    out: Removals  # [steps]


def _eliminate(
    K: Array, W: Array, live: Array, floor: Floor, blocks: Array, grid: Grid
) -> Removals:
    """The removals of one row of groups, so many blocks of steps at most."""
    r, steps = grid.inputs, K.shape[0] // grid.inputs
    per = max(BLOCK // r, 1)
    diagonal = jnp.arange(steps)
    alive = jnp.any(live.reshape(steps, r), axis=1)
    nothing = Removals(jnp.full(steps, steps, jnp.int32), jnp.zeros(steps, W.dtype))

    def block(at: Array, carry: tuple[Array, _State]) -> tuple[Array, _State]:
        K, state = carry
        D = K.reshape(steps, r, steps, r)[diagonal, :, diagonal]
        state = state._replace(V=jnp.zeros_like(state.V), D=D)
        step = functools.partial(_step, K=K, first=at * per, floor=floor, grid=grid)
        state = jax.lax.fori_loop(0, per, step, state)
        return K - jnp.einsum("ki,kj->ij", state.V, state.V, precision=HIGHEST), state

    V, D = jnp.zeros((per * r, len(K)), K.dtype), jnp.zeros((steps, r, r), K.dtype)
    start = K, _State(W, V, D, live, alive, nothing)
    out = jax.lax.fori_loop(0, blocks, block, start)[1].out
    exists = jnp.all(jnp.isfinite(jnp.diagonal(K)))
    return out._replace(loss=jnp.where(exists, out.loss, jnp.nan))


def _step(
    at: Array, state: _State, *, K: Array, first: Array, floor: Floor, grid: Grid
) -> _State:
    """The group of least loss goes, weight by weight, if one may go."""
    r, alive = grid.inputs, state.alive
    left = jnp.sum(alive.reshape(-1, grid.span), axis=1, dtype=jnp.int32)
    may = alive & jnp.repeat(left > floor.span, grid.span)
    may &= jnp.sum(alive, dtype=jnp.int32) > floor.unit
    cost = jnp.minimum(_costs(state.D, state.W), jnp.finfo(K.dtype).max)
    cost = jnp.where(may, cost, jnp.inf)
    best, go = jnp.argmin(cost).astype(jnp.int32), jnp.any(may)
    place = jnp.arange(K.shape[0], dtype=jnp.int32)

    def pivot(i: Array, carry: tuple[_State, Array]) -> tuple[_State, Array]:
        state, loss = carry
        V, live, q = state.V, state.live, best * r + i
        row = K[q] - jnp.sum(V[:, q][:, None] * V, axis=0)
        row = jnp.where(live, row, 0)
        # rounding may leave nothing of what is gone
        root = jnp.where(go & (row[q] > 0), row[q], jnp.inf) ** -0.5
        v, amount = root * row, root * state.W[:, q]
        live = live & ~((place == q) & go)
        parts = v.reshape(-1, r)
        state = state._replace(
            W=jnp.where(live[None], state.W - amount[:, None] * v[None], 0),
            V=V.at[at * r + i].set(v),
            D=state.D - parts[:, :, None] * parts[:, None, :],
            live=live,
        )
        return state, loss + jnp.sum(amount**2) / 2

    start = state, jnp.zeros((), K.dtype)
    if r == 1:
        state, loss = pivot(jnp.zeros((), jnp.int32), start)
    else:
        state, loss = jax.lax.fori_loop(0, r, pivot, start)
    alive = alive & ~((jnp.arange(len(alive), dtype=jnp.int32) == best) & go)
    out, step = state.out, first + at  # beyond the last step nothing is set
    out = Removals(
        out.group.at[step].set(jnp.where(go, best, len(alive)), mode="drop"),
        out.loss.at[step].set(jnp.where(go, loss, 0), mode="drop"),
    )
    return state._replace(alive=alive, out=out)


def _costs(D: Array, W: Array) -> Array:
    """Twice the loss of removing each group, ``[groups]``.

    It is :math:`w^T D^{-1} w`, by elimination within all groups at once.
    """
    steps, r, _ = D.shape
    if r == 1:
        p = D[:, 0, 0]
        most = jnp.finfo(p.dtype).max  # where rounding left nothing of the inverse
        return jnp.where(p > 0, divide(jnp.sum(W**2, axis=0), p), most)
    R = W.reshape(-1, steps, r)  # [units, groups, inputs]

    def pivot(i: Array, carry: tuple) -> tuple:
        D, R, cost = carry
        p, row = D[:, i, i], D[:, i]
        root = jnp.where(p > 0, p, jnp.inf) ** -0.5
        v, amount = root[:, None] * row, root[None] * R[:, :, i]
        D = D - v[:, :, None] * v[:, None, :]
        R = R - amount[:, :, None] * v[None]
        return D, R, cost + jnp.sum(amount**2, axis=0)

    start = D, R, jnp.zeros(steps, D.dtype)
    return jax.lax.fori_loop(0, r, pivot, start)[-1]


class Merged(NamedTuple):
    """All groups of a layer, in one order."""

    place: Array  # [rows, groups], int32, from 1; of those that stay, behind all others
    losses: Array  # [rows * groups], the rise of the loss at each place


def merged(found: Removals, together: bool) -> Merged:
    """The removals of all rows in one order.

    Args:
      found: the removals.
      together: whether the least next loss of all rows goes first; otherwise each row
        loses one group in turn.
    """
    rows, steps = found.group.shape
    gone = found.group < steps
    turn = jnp.broadcast_to(jnp.arange(steps, dtype=jnp.int32), found.group.shape)
    if together:
        # a loss below an earlier one of its row follows that one at once
        key = jax.lax.cummax(jnp.where(gone, found.loss, jnp.inf), axis=1)
        order = jnp.argsort(key.ravel(), stable=True)
    else:
        key = jnp.where(gone, turn, steps)
        order = jnp.argsort(key.T.ravel(), stable=True)
        order = order % rows * steps + order // rows
    size = rows * steps
    place = jnp.zeros(size, jnp.int32)
    place = place.at[order].set(jnp.arange(1, size + 1, dtype=jnp.int32))
    place = place.reshape(rows, steps)
    out = jnp.full((rows, steps), size + 1, jnp.int32)
    row = jnp.arange(rows, dtype=jnp.int32)[:, None]
    out = out.at[row, found.group].set(place, mode="drop")
    return Merged(out, found.loss.ravel()[order])
