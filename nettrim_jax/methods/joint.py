r"""``Joint``: the units whose removal the layers that read them can repair best.

With inputs of moments :math:`H`, a layer's best weights without the inputs :math:`R` of
a unit lose :math:`\operatorname{tr} M W_R^\top [(H^{-1})_{RR}]^{-1} W_R` (Hassibi and
Stork, 1993, for one weight). The inverse and the weights are updated as units go.

Knows arrays and what surrounds units; knows no network.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from nettrim_jax._values import number
from nettrim_jax.calibration.statistics import Moments, OutputSensitivity, Statistic
from nettrim_jax.methods.around import Around, Maker, Reader, places
from nettrim_jax.results import MethodError

GAIN = 1e-6  # least share of a loss that an exchange has to save


@dataclasses.dataclass(frozen=True)
class Joint:
    r"""Keeps the units from which the others can be repaired, chosen together.

    .. math::
        \min_{|S| = k} \; \sum_{l} \min_{W_S = 0}
        \operatorname{tr} \, (W - W_l)^\top H_l \, (W - W_l) \, M_l

    where the sum is over the layers :math:`l` that read the units, :math:`H_l` has the
    second moments of such a layer's inputs, and :math:`M_l` weighs the errors of its
    response by what the output feels, as in :class:`nettrim_jax.Reconstruct`. So a unit
    goes if others can take its part, and not if it is small. The choice is greedy, one
    unit after another with all weights refitted each time, and then units are exchanged
    as long as that helps. Units that no layer sums over, such as the dimensions of
    queries and keys, are chosen by the errors of the layers that make them.

    Attributes:
      downstream: the share of the loss that measures errors at the network's output
        rather than at the layer, in [0, 1].
      ridge: is added to the moments, relative to their mean diagonal; above 0.

    Raises:
      MethodError: an attribute is out of its range.

    Example:
      >>> import nettrim_jax as nt
      >>> nt.Units(0.5, by=nt.Joint()).by.downstream
      0.8
    """

    downstream: float = 0.8
    ridge: float = 1e-4

    loss: ClassVar[None] = None

    def __post_init__(self):
        for name, least, most in (("downstream", 0, 1), ("ridge", 1e-12, np.inf)):
            value: Any = getattr(self, name)
            if not number(value) or not least <= value <= most or value == np.inf:
                span = "in [0, 1]" if most == 1 else "above 0"
                raise MethodError(
                    f"Joint({name}={value!r}): expected a finite number {span}"
                )

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """Second moments, and the sensitivity of the output if it is used."""
        return (Moments(), OutputSensitivity()) if self.downstream else (Moments(),)

    def scores(self, around: Around) -> np.ndarray:
        """The loss by each unit alone, ``[count]``."""
        return self._state(around).losses()

    def path(self, around: Around) -> tuple[np.ndarray, np.ndarray]:
        """All units but one in the order in which they go, and what each adds."""
        state = self._state(around)
        return _eliminate(state, around.count - 1)

    def choose(self, around: Around, count: int) -> np.ndarray:
        """The units to remove, ``[count]``, in ascending order."""
        state = self._state(around)
        _eliminate(state, count)
        for _ in range(min(count, around.count - count) * 2):
            if not state.exchange():
                break
        return np.flatnonzero(state.gone)

    def _state(self, around: Around) -> "_State":
        readers = [_Reader(one, around.count, self) for one in around.readers]
        makers = around.makers if not readers else ()
        return _State(around.count, readers, [_cross(m, around, self) for m in makers])


def _blend(feels: np.ndarray | None, size: int, share: float) -> np.ndarray:
    """The weights of errors, of which a share is at the output and the rest plain."""
    eye = np.eye(size)
    if feels is None or not np.isfinite(feels).all() or np.trace(feels) <= 0:
        return eye
    return share * feels + (1 - share) * np.trace(feels) / size * eye


def _root(M: np.ndarray) -> np.ndarray:
    """``R`` with ``R R^T = M``, without columns of nothing."""
    e, Q = np.linalg.eigh((M + M.T) / 2)
    some = e > np.finfo(e.dtype).eps * max(float(e.max(initial=0)), 0) * len(e)
    return Q[:, some] * np.sqrt(e[some])


def _cross(maker: Maker, around: Around, by: Joint) -> np.ndarray:
    """The loss by pairs of units whose responses become zero, ``[count, count]``."""
    M = _blend(maker.feels, len(maker.unit), by.downstream)
    P = np.asarray(maker.P, np.float64)
    C = P.T @ P / max(len(P), 1) * M
    spread = np.zeros((len(maker.unit), around.count))
    mine = np.flatnonzero(maker.unit >= 0)
    spread[mine, maker.unit[mine]] = 1
    return spread.T @ C @ spread


class _Reader:
    """The weights of one reader as units go.

    Args:
      reader: the reader.
      count: the number of units.
      by: the criterion.

    Attributes:
      H: the moments, ``[d, d]``.
      V0, V: the trained weights and the best ones without the removed units, times a
        root of the weights of errors, ``[d, r]``.
      K: the inverse of the moments of what is left, zero elsewhere.
      where: the positions of the units, ``[most, count]``; -1 for none.
    """

    def __init__(self, reader: Reader, count: int, by: Joint):
        H = np.asarray(reader.moments, np.float64)
        W = np.asarray(reader.W, np.float64)
        R = _root(_blend(reader.feels, W.shape[1], by.downstream))
        bias = len(H) - len(W)
        self.H = H + by.ridge * max(np.trace(H) / len(H), 1e-30) * np.eye(len(H))
        self.V0 = np.concatenate([W @ R, np.zeros((bias, R.shape[1]))])
        self.V, self.K = self.V0.copy(), np.linalg.inv(self.H)
        self.where = places(reader.unit, count)

    def parts(self, A: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The blocks of a matrix and the weights of some units.

        Returns:
          ``[units, most, most]``, the identity where a unit has fewer places, and
          ``[units, most, r]``, zero there.
        """
        at = self.where[:, units].T
        real = at >= 0
        both = real[:, :, None] & real[:, None, :]
        blocks = A[at[:, :, None], at[:, None, :]]
        blocks = np.where(both, blocks, np.eye(at.shape[1]))
        return blocks, np.where(real[:, :, None], self.V[at], 0)

    def losses(self, units: np.ndarray) -> np.ndarray:
        """What each of some units adds to the loss if it goes."""
        blocks, V = self.parts(self.K, units)
        if blocks.shape[1] == 1:
            return np.sum(V[:, 0] ** 2, axis=1) / blocks[:, 0, 0]
        return np.sum(V * np.linalg.solve(blocks, V), axis=(1, 2))

    def remove(self, unit: int) -> None:
        """Takes a unit out, and refits the others."""
        at = self.where[:, unit]
        at = at[at >= 0]
        if not at.size:
            return
        K = self.K[:, at]
        turn = np.linalg.solve(K[at], np.concatenate([self.V[at], K.T], axis=1))
        rank = self.V.shape[1]
        self.V -= K @ turn[:, :rank]
        self.K -= K @ turn[:, rank:]
        self.V[at], self.K[at], self.K[:, at] = 0, 0, 0

    def gains(self, units: np.ndarray) -> np.ndarray:
        """What the loss falls by if each of some removed units comes back."""
        at = self.where[:, units].T
        real = at >= 0
        flat = np.maximum(at, 0)
        rest = self.H[flat] @ (self.V0 - self.V)  # [units, most, r]
        cross = self.H[flat] @ self.K  # [units, most, d]
        S = self.H[flat[:, :, None], flat[:, None, :]]
        S = S - np.einsum("uid,ujd->uij", cross, self.H[flat])
        both = real[:, :, None] & real[:, None, :]
        S = np.where(both, S, np.eye(at.shape[1]))
        rest = np.where(real[:, :, None], rest, 0)
        return np.sum(rest * np.linalg.solve(S, rest), axis=(1, 2))

    def restore(self, unit: int) -> None:
        """Puts a unit back, and refits the others."""
        at = self.where[:, unit]
        at = at[at >= 0]
        if not at.size:
            return
        rows = self.H[at]
        a = self.K @ rows.T  # [d, k]
        S = rows[:, at] - rows @ a
        E = -a
        E[at, np.arange(len(at))] = 1
        new = np.linalg.solve(S, rows @ (self.V0 - self.V))
        self.V += E @ new
        self.K += E @ np.linalg.solve(S, E.T)

    def copy(self) -> tuple[np.ndarray, np.ndarray]:
        """What an exchange may have to bring back."""
        return self.V.copy(), self.K.copy()


class _State:
    """Which units are gone, and what that costs.

    Args:
      count: the number of units.
      readers: the layers that read them.
      cross: without readers, the losses by pairs of units, one array per maker.
    """

    def __init__(self, count: int, readers: list[_Reader], cross: list[np.ndarray]):
        self.readers = readers
        self.cross = sum(cross, np.zeros((count, count)))
        self.gone = np.zeros(count, bool)

    def losses(self) -> np.ndarray:
        """What each unit adds if it goes, infinite for those that are gone."""
        left = np.flatnonzero(~self.gone)
        both = 2 * self.cross[:, self.gone].sum(1) + np.diag(self.cross)
        out = np.where(self.gone, np.inf, both)
        for reader in self.readers:
            out[left] += reader.losses(left)
        return out

    def remove(self, unit: int) -> None:
        """Takes a unit out."""
        for reader in self.readers:
            reader.remove(unit)
        self.gone[unit] = True

    def exchange(self) -> bool:
        """Brings the best unit back for the least one; whether that helped."""
        gone = np.flatnonzero(self.gone)
        gains = 2 * self.cross[gone][:, gone].sum(1) - np.diag(self.cross)[gone]
        for reader in self.readers:
            gains = gains + reader.gains(gone)
        best = int(np.argmax(gains))
        back, gain = int(gone[best]), float(gains[best])
        before = [reader.copy() for reader in self.readers]
        for reader in self.readers:
            reader.restore(back)
        self.gone[back] = False
        losses = self.losses()
        worst = int(np.argmin(losses))
        if worst != back and losses[worst] < gain * (1 - GAIN):
            self.remove(worst)
            return True
        for reader, (V, K) in zip(self.readers, before, strict=True):
            reader.V, reader.K = V, K
        self.gone[back] = True
        return False


def _eliminate(state: _State, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Removes so many units one after another; their order, and what each adds."""
    order, added = [], []
    for _ in range(count):
        losses = state.losses()
        unit = int(np.argmin(losses))
        order.append(unit)
        added.append(max(float(losses[unit]), 0.0))
        state.remove(unit)
    return np.array(order, int), np.array(added)
