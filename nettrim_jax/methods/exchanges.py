r"""Exchanges of single weights, by which ``Reconstruct`` ends in small layers.

A weight of a unit goes, and one that was zero comes back, of the same unit or of
another, with the best values of all others: the pair that lowers the loss most, as long
as one does. Each unit has a tableau, from which the loss of every exchange can be read,
and which a pivot on one input brings up to date (the sweep operator: Beaton, 1964).

It runs on the host in float64, where such layers take less time than their compilation
would. Knows arrays and patterns; knows no network.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import _sharding
from nettrim_jax._clip import Clip
from nettrim_jax._trees import known
from nettrim_jax.methods.counts import is_counted
from nettrim_jax.methods.patterns import NM, Sparsity
from nettrim_jax.methods.quadratic import Observed, centred, sizes
from nettrim_jax.methods.trials import Fit
from nettrim_jax.methods.within import apart

ENTRIES = 2**25  # largest number of entries of all tableaus
WORK = 2**31  # largest number of entries that all exchanges may change
WORTH = 1e-5  # least gain of an exchange, relative to the loss
FIRM = 1e-5  # least eigenvalue of a curvature of unit diagonal
ROUNDS = 8  # times that the target is updated for the present response, at most
TARGETS = 3  # updates of the target before exchanges


Pivot = tuple[int, int]  # a unit, and an input that goes out of it or back in


class Choice(NamedTuple):
    """Which exchanges a pattern allows."""

    across: bool  # whether one unit may lose what another one gains
    group: int  # number of consecutive inputs within which an exchange stays; 0: all


def choice_of(pattern: Any) -> Choice | None:
    """The exchanges that leave a counted pattern as it is; None if it is another."""
    inner, _ = apart(pattern)
    if not is_counted(inner):  # it may be of the user's own
        return None
    if isinstance(inner, NM):
        return Choice(False, inner.m)
    if isinstance(inner, Sparsity):
        return Choice(inner.scope == "layer", 0)
    return None


def suits(pattern: Any, seen: Observed) -> bool:
    """Whether layers ``[layers, b, ...]`` are known, small, and of such a pattern."""
    arrays = jax.tree.leaves((pattern, seen))
    if not all(known(a) and getattr(a, "is_fully_addressable", True) for a in arrays):
        return False
    _, b, d_in, d_out = seen.W0.shape
    small = b * d_in**2 * d_out <= ENTRIES
    return small and seen.coupling is None and choice_of(pattern) is not None


def each_exchanged(
    pattern: Any, seen: Observed, fit: Fit, clip: Clip, free: bool
) -> Fit:
    """The exchanges of all layers of a stack, see :func:`exchanged`."""
    every: Any = jax.device_get((pattern, seen, fit))
    done = []
    for k in range(len(fit.W)):
        mine, rows, found = jax.tree.map(lambda a: a[k], every)  # noqa: B023
        done.append(exchanged(mine, rows, found, clip, free))
    new = (np.stack(part) for part in zip(*done, strict=True))
    W, move = map(_sharding.like, map(jnp.asarray, new), fit[:2])
    return fit._replace(W=W, move=move)


class Units:
    """Every unit's tableau, weights and gradient.

    With ``S`` the inputs that are left of a unit and ``F`` the others, its tableau is
    ``[[-inv(K_SS), inv(K_SS) K_SF], [K_FS inv(K_SS), K_FF - K_FS inv(K_SS) K_SF]]``.
    """

    def __init__(self, K: np.ndarray, here: np.ndarray):
        """Makes the tableaus.

        Args:
          K: curvature of each lane, ``[b, d_in, d_in]``.
          here: the inputs that are left, ``[b * d_out, d_in]``, lane after lane.
        """
        self.here = here
        self.T = np.repeat(K, len(here) // len(K), axis=0)
        for T, s in zip(self.T, here, strict=True):
            f = ~s
            inverse = np.linalg.inv(T[np.ix_(s, s)])
            cross = inverse @ T[np.ix_(s, f)]
            T[np.ix_(f, f)] -= T[np.ix_(f, s)] @ cross
            T[np.ix_(s, s)] = -(inverse + inverse.T) / 2
            T[np.ix_(s, f)], T[np.ix_(f, s)] = cross, cross.T
        self.y = np.zeros_like(self.T[:, 0])

    def take(self, G: np.ndarray) -> None:
        """Takes this linear term, ``[units, d_in]``."""
        at = self.here
        left = np.where(at, G, 0)
        y = np.einsum("uij,uj->ui", self.T, left)
        self.y = np.where(at, -y, G - y)

    @property
    def weights(self) -> np.ndarray:
        """The best weights, ``[units, d_in]``."""
        return np.where(self.here, self.y, 0)

    def pivot(self, u: int, k: int) -> None:
        """Takes input ``k`` out of unit ``u``, or back in."""
        T, y = self.T[u], self.y[u]
        d, row = T[k, k], T[k].copy()
        out = self.here[u, k]
        t = y[k] / d
        y -= t * row
        T -= np.outer(row / d, row)
        T[k] = T[:, k] = -row / d if out else row / d
        T[k, k] = -1 / d
        y[k] = -t if out else t
        self.here[u, k] = not out


class Search:
    """Exchanges of one layer, from the best one on; gains are twice those of the loss.

    Of each unit it has the least ``cost`` of one weight less, the largest ``gain`` of
    one more, and the largest gain ``within`` it of an exchange, with the inputs
    ``[units, 4]`` of these: of the cost, of the gain, and the two of the exchange.
    """

    def __init__(self, units: Units, allowed: np.ndarray, choice: Choice):
        self.units, self.allowed = units, by_unit(allowed)
        self.across = choice.across
        n, d = units.here.shape
        self.cost, self.gain, self.within = np.zeros((3, n))
        self.inputs = np.zeros((n, 4), int)
        self.group = np.arange(d) // (choice.group or d)
        self.left = WORK // d**2  # number of pivots

    def look(self, u: int) -> None:
        """Finds the best of one unit."""
        T, y, here = self.units.T[u], self.units.y[u], self.units.here[u]
        s, f = np.flatnonzero(here), np.flatnonzero(~here & self.allowed[u])
        self.cost[u], self.gain[u], self.within[u] = np.inf, -np.inf, -np.inf
        # rounding may leave nothing of what an input has beside the others
        room, inverse = np.diagonal(T)[f], -np.diagonal(T)[s]
        f, room = f[room > 0], room[room > 0]
        cost, gain = y[s] ** 2 / inverse, y[f] ** 2 / room
        if len(s):
            at = np.argmin(cost)
            self.cost[u], self.inputs[u, 0] = cost[at], s[at]
        if len(f):
            at = np.argmax(gain)
            self.gain[u], self.inputs[u, 1] = gain[at], f[at]
        if len(s) and len(f):
            cross = T[np.ix_(s, f)]
            part = cross / inverse[:, None]
            both = (y[f] + part * y[s][:, None]) ** 2 / (room + part * cross)
            same = self.group[s][:, None] == self.group[f]
            both = np.where(same, both - cost[:, None], -np.inf)
            i, j = np.unravel_index(np.argmax(both), both.shape)
            self.within[u], self.inputs[u, 2:] = both[i, j], (s[i], f[j])

    def ranked(self) -> list[tuple[float, tuple[Pivot, ...]]]:
        """The best exchanges within a unit and across two, each with its gain."""
        u = int(np.argmax(self.within))
        _, _, out, back = map(int, self.inputs[u])
        found = [(float(self.within[u]), ((u, out), (u, back)))]
        if self.across:
            # the two best of each side, for a unit does not exchange with itself
            for v in map(int, np.argsort(self.cost)[:2]):
                for w in map(int, np.argsort(-self.gain)[:2]):
                    pivots = (v, int(self.inputs[v, 0])), (w, int(self.inputs[w, 1]))
                    gain = float(self.gain[w] - self.cost[v])
                    found += [(gain, pivots)] if v != w else []
        return found

    def run(self, least: float) -> int:
        """Makes all exchanges that gain more than this; returns their number."""
        for u in range(len(self.cost)):
            self.look(u)
        count = 0
        while self.left > 0:
            gain, pivots = max(self.ranked())
            if not gain > least:
                break
            for u, k in pivots:
                self.units.pivot(u, k)
            for u in {u for u, _ in pivots}:
                self.look(u)
            count, self.left = count + 1, self.left - len(pivots)
        return count


class Layer(NamedTuple):
    """What the loss of one layer is made of, in float64, for inputs of unit size."""

    P: Any  # [b, n, d_out], the trained response before the clip
    P0: Any  # [b, n, d_out], the trained weights' response to X
    valid: Any  # [b, n, 1], the rows that count
    X: Any  # [b, n, d_in]
    K: Any  # [b, d_in, d_in], the curvature of each unit
    B: Any  # [b, d_in, d_out], the trained weights
    share: Any  # [b, 1, 1], the number of rows for which one of X counts
    plain: Any  # [b, 1, 1]
    clip: Clip
    free: bool

    def move(self, V: Any, b: Any) -> Any:
        """How far the response is to move at these weights and biases."""
        want = self.P
        if not self.clip.linear:
            R = self.P0 + self.X @ (V - self.B) + b[:, None, :]
            off = self.plain * self.P + (1 - self.plain) * self.clip.like(R, self.P)
            want = np.where(self.clip.passes(self.P), want, off)
        return np.where(self.valid, want - self.P0, 0)

    def bias(self, off: Any, b: Any) -> Any:
        """The change of the biases for that, where they are free, ``[b, d_out]``."""
        if not self.free:
            return b
        return off.sum(1) / np.maximum(self.valid.sum(1), 1)

    def slope(self, off: Any) -> Any:
        """The linear term, ``[b, d_in, d_out]``."""
        return self.K @ self.B + self.share * (self.X.mT @ off)

    def loss(self, off: Any, V: Any) -> float:
        """Twice the loss at the best weights ``V`` of some supports."""
        G = self.slope(off)
        if self.free:
            off = off - np.where(self.valid, self.bias(off, None)[:, None, :], 0)
        most = np.sum(self.share * off**2) + np.sum(self.B * (2 * G - self.K @ self.B))
        return float(most - np.sum(G * V))


def exchanged(
    pattern: Any, seen: Any, fit: Any, clip: Clip, free: bool
) -> tuple[np.ndarray, np.ndarray]:
    """One layer's weights and the change of its biases, after the exchanges.

    Args:
      pattern: the pattern of the weights.
      seen: the layer's lanes, an ``Observed`` without a coupling, in NumPy's arrays.
      fit: the weights, and what they were found with, likewise.
      clip: the limits between which the response passes.
      free: whether the bias moves.

    Returns:
      Weights with as many zeros as before, and the change of the biases. They are those
      that were given if no exchange is possible.
    """
    (W, move, parts), choice = fit, choice_of(pattern)
    _, allowed = apart(pattern)
    allowed = np.ones(W.shape, bool) if allowed is None else np.asarray(allowed)
    left = W != 0
    idle = not left.any() or not (allowed & ~left).any()
    if choice is None or idle or not (np.isfinite(W).all() and np.isfinite(move).all()):
        return W, move
    rows = centred(seen, free)
    X, H, mean, share = _wide(rows.X, rows.H, rows.mean, rows.share)
    P, P0, W0, plain = _wide(seen.P, seen.P0, seen.W0, parts.plain)
    size = sizes(H)[:, :, None]
    K = H / (size * size.mT) + parts.ridge * np.eye(H.shape[1])
    # as without a ridge, on fewer rows than inputs
    if parts.ridge < FIRM and np.linalg.eigvalsh(K).min() < FIRM:
        return W, move
    inner = X / size.mT, K, W0 * size, share[:, None, None], plain[:, None, None]
    layer = Layer(P, P0, seen.valid[:, :, None], *inner, clip, free)
    V = W * size
    b = move + np.einsum("bi,bio->bo", mean, W - W0)
    V, b = descended(layer, V, b, Search(Units(K, by_unit(left)), allowed, choice))
    if not np.isfinite(V).all():
        return W, move
    new = V / size
    change = b - np.einsum("bi,bio->bo", mean, new - W0)
    return new.astype(W.dtype), change.astype(move.dtype)


def descended(layer: Layer, V: Any, b: Any, search: Search) -> tuple[Any, Any]:
    """Weights and changes of biases at which no exchange gains."""
    units = search.units
    for _ in range(ROUNDS):
        for _ in range(1 if layer.clip.linear else TARGETS):
            off = layer.move(V, b)
            units.take(by_unit(layer.slope(off)))
            V, b = by_lane(units.weights, V.shape), layer.bias(off, b)
        if not search.run(WORTH * max(layer.loss(off, V), 0)):
            break
        V = by_lane(units.weights, V.shape)
    return V, layer.bias(layer.move(V, b), b)


def _wide(*arrays: Any) -> Any:
    return [np.asarray(a, float) for a in arrays]


def by_unit(A: np.ndarray) -> np.ndarray:
    """``[b, d_in, d_out]`` as ``[b * d_out, d_in]``."""
    return np.ascontiguousarray(A.transpose(0, 2, 1)).reshape(-1, A.shape[1])


def by_lane(A: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """``[b * d_out, d_in]`` as ``[b, d_in, d_out]``."""
    b, d_in, d_out = shape
    return A.reshape(b, d_out, d_in).transpose(0, 2, 1)
