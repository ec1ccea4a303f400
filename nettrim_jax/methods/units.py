"""``Units``: removes whole units of a network, chosen by a criterion.

Knows criteria and what surrounds units; knows no network.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax import results
from nettrim_jax._trees import STATIC
from nettrim_jax._values import flag, number, whole
from nettrim_jax.calibration.gradient import Loss
from nettrim_jax.calibration.statistics import Statistic
from nettrim_jax.methods.around import Around
from nettrim_jax.methods.base import (
    Answer,
    Chooser,
    Direct,
    LayerData,
    LayerKind,
)
from nettrim_jax.methods.criteria import criterion_of, lowest, path
from nettrim_jax.methods.joint import Joint
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array

SCOPES = ("group", "network")
ROUNDS = 3  # of measuring what a unit saves
SIZES = ("units", "parameters", "multiply-adds")
Removed = dict[str, np.ndarray]  # by the names of groups, [k] or [*steps, k]


class Found(Protocol):
    """What a network's units are, and what it costs to keep them."""

    @property
    def groups(self) -> Sequence[tuple[str, int, tuple[int, ...]]]:
        """The name, the number of units and the steps of each group."""
        ...

    def around(
        self, name: str, statistics: tuple[Statistic, ...], loss: Loss | None
    ) -> Sequence[Around]:
        """What surrounds the units of a group, at each step."""
        ...

    def learned(self, method: Any) -> "Removed":
        """The units that agents do without, see ``allocation.agent``."""
        ...

    def size(self, of: str, removed: Mapping[str, np.ndarray]) -> int:
        """The size of the network without some units, as one of ``SIZES``."""
        ...


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Units(Chooser):
    r"""Removes whole units (neurons, channels, heads), and refits the layers around.

    Units are those of :func:`nettrim_jax.units`: what ``prune`` returns has zeros in
    all of their entries, biases and normalisations too, and :func:`nettrim_jax.shrink`
    makes smaller arrays of it. One unit of each group always stays. Layers around the
    removed units are then fitted to the trained response as by
    :func:`nettrim_jax.refit`; with ``mode="cascade"``, which loses less, each one has
    the inputs that it gets from the network as fitted so far.

    Give one of ``share``, ``count`` and ``deviations``.

    Attributes:
      share: the share of units to remove, in [0, 1), of each group, rounded; with
        ``scope="network"`` of the whole network, at least.
      by: the criterion: :class:`nettrim_jax.Joint`, :class:`nettrim_jax.L1` (or
        another penalty), :class:`nettrim_jax.L2`, :class:`nettrim_jax.MeanActivation`,
        :class:`nettrim_jax.NonZeros`, :class:`nettrim_jax.APoZ`,
        ``nettrim_jax.Taylor(loss)`` or ``nettrim_jax.Random()``.
      count: the number of units to remove of each group.
      deviations: removes units whose score is more than so many standard deviations
        below the mean of their group.
      scope: ``"group"``: each group loses as many. ``"network"``: groups lose the
        units that add least to the loss for what they save.
      of: the size of which ``share`` is a share in the scope of the network:
        ``"units"``, ``"parameters"`` or ``"multiply-adds"``.
      refit: whether layers around are fitted; otherwise units become zero and all else
        stays.

    Raises:
      MethodError: an attribute is out of its range.

    Example:
      >>> import jax
      >>> import nettrim_jax as nt
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {
      ...     "hidden": jax.random.normal(keys[0], (8, 6)),
      ...     "output": jax.random.normal(keys[1], (6, 3)),
      ... }
      >>> x = jax.random.normal(keys[2], (200, 8))
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["hidden"]) @ params["output"]
      >>> pruned = nt.prune(params, apply_fn, x, method=nt.Units(0.5))
      >>> nt.shrink(pruned, apply_fn, x).params["output"].shape
      (3, 3)
    """

    share: float | None = dataclasses.field(default=None, metadata=STATIC)
    by: Any = dataclasses.field(default_factory=Joint, metadata=STATIC, kw_only=True)
    count: int | None = dataclasses.field(default=None, metadata=STATIC, kw_only=True)
    deviations: float | None = dataclasses.field(
        default=None, metadata=STATIC, kw_only=True
    )
    scope: str = dataclasses.field(default="group", metadata=STATIC, kw_only=True)
    of: str = dataclasses.field(default="units", metadata=STATIC, kw_only=True)
    refit: bool = dataclasses.field(default=True, metadata=STATIC, kw_only=True)

    bias: ClassVar[str] = "free"

    def __post_init__(self):
        given: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("share", "count", "deviations")
            if getattr(self, name) is not None
        }
        if len(given) != 1:
            got = ", ".join(f"{k}={v!r}" for k, v in given.items()) or "none"
            raise MethodError(
                "Units: expected one of share, count and deviations, such as "
                f"Units(0.5), got {got}"
            )
        name, value = next(iter(given.items()))
        if name == "share" and not (number(value) and 0 <= value < 1):
            raise MethodError(
                f"Units(share={value!r}): expected a share of units to remove, in "
                "[0, 1), such as Units(0.5)"
            )
        if name == "count" and not (whole(value) and value >= 0):
            raise MethodError(
                f"Units(count={value!r}): expected a number of units to remove"
            )
        if name == "deviations" and not number(value):
            raise MethodError(
                f"Units(deviations={value!r}): expected a number such as 1.0"
            )
        for name, among in (("scope", SCOPES), ("of", SIZES)):
            if getattr(self, name) not in among:
                raise MethodError(
                    f"Units({name}={getattr(self, name)!r}): expected one of {among}"
                )
        if self.scope == "network" and self.share is None:
            raise MethodError(
                "Units(scope='network'): goes with share, that of the whole network"
            )
        if self.of != "units" and self.scope != "network":
            raise MethodError(
                f"Units(of={self.of!r}): goes with scope='network'; each group loses "
                "a share of its units"
            )
        if not flag(self.refit):
            raise MethodError(f"Units(refit={self.refit!r}): expected True or False")
        if criterion_of(self.by) is None:
            raise MethodError(
                f"Units(by={self.by!r}): expected a criterion such as Joint(), L1(), "
                "APoZ() or Taylor(loss)"
            )

    def choose(self, units: Found) -> Removed:
        """The units to remove by the names of groups."""
        by = criterion_of(self.by)
        around = {
            name: units.around(name, by.statistics, by.loss)
            for name, _, _ in units.groups
        }
        if self.scope == "network":
            counts = _split(units, around, by, self.share or 0.0, self.of)
        else:
            counts = {
                name: self._count(around[name], count, by)
                for name, count, _ in units.groups
            }
        return {
            name: _stacked(
                [lowest(by, one, counts[name]) for one in around[name]], steps
            )
            for name, _, steps in units.groups
            if counts[name]
        }

    def _count(self, around: Sequence[Around], units: int, by: Any) -> int:
        """The number of units that a group loses."""
        if self.share is not None:
            return min(round(self.share * units), units - 1)
        if self.count is not None:
            return min(self.count, units - 1)
        scores = np.stack([by.scores(one) for one in around])
        low = scores < scores.mean(1, keepdims=True) - (
            (self.deviations or 0.0) * scores.std(1, keepdims=True)
        )
        # steps of a loop lose as many as each other
        return min(int(low.sum(1).min()), units - 1)


def _stacked(each: Sequence[np.ndarray], steps: tuple[int, ...]) -> np.ndarray:
    return np.stack(each).reshape(*steps, -1)


def _split(
    units: Found,
    around: Mapping[str, Sequence[Around]],
    by: Any,
    share: float,
    of: str,
) -> dict[str, int]:
    """How many units each group loses so that the network loses a share of its size.

    A group's curve is what its units add to the loss in the order in which they go;
    of its lower hull a unit is worth its slope over what it saves. The units of least
    worth go, as many as it takes; what they save is then measured again in the network
    without them.
    """
    curves = {}
    for name, each in around.items():
        added = np.sum([path(by, one)[1] for one in each], axis=0)
        curves[name] = _slopes(added)
    most = {name: len(curve) for name, curve in curves.items()}
    removed = dict.fromkeys(curves, 0)
    full = units.size(of, {})
    for _ in range(ROUNDS):
        saves = {
            name: _saving(units, of, removed, name, most[name], around)
            for name in curves
        }
        steps = sorted(
            (slope / max(saves[name], 1e-30), name)
            for name, curve in curves.items()
            for slope in curve
        )
        low, high = 0, len(steps)
        while low < high:  # the fewest steps that save enough
            middle = (low + high) // 2
            now = _counts(steps[:middle], curves)
            if units.size(of, _any(now, around)) <= (1 - share) * full:
                high = middle
            else:
                low = middle + 1
        now = _counts(steps[:low], curves)
        if now == removed:
            break
        removed = now
    return removed


def _slopes(added: np.ndarray) -> np.ndarray:
    """The slopes of the lower hull of a curve, per unit, from what each adds."""
    total = np.concatenate([[0.0], np.cumsum(added)])
    out, at = [], 0
    while at < len(added):
        ahead = np.arange(at + 1, len(total))
        slopes = (total[ahead] - total[at]) / (ahead - at)
        best = int(np.flatnonzero(slopes <= slopes.min())[-1])
        out += [slopes[best]] * (best + 1)
        at = int(ahead[best])
    return np.array(out)


def _counts(steps: Sequence[tuple[float, str]], names: Mapping[str, Any]) -> dict:
    out = dict.fromkeys(names, 0)
    for _, name in steps:
        out[name] += 1
    return out


def _any(counts: Mapping[str, int], around: Mapping[str, Sequence[Around]]) -> Removed:
    """Units of these numbers, whichever; sizes depend on the numbers alone."""
    return {
        name: np.tile(np.arange(count), (len(around[name]), 1))
        for name, count in counts.items()
        if count
    }


def _saving(
    units: Found,
    of: str,
    removed: Mapping[str, int],
    name: str,
    most: int,
    around: Mapping[str, Sequence[Around]],
) -> float:
    """What one more unit of a group saves."""
    one = min(removed[name], most - 1)
    sizes = [
        units.size(of, _any({**removed, name: count}, around))
        for count in (one, one + 1)
    ]
    return float(sizes[0] - sizes[1])


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Hold(Direct):
    """Keeps some weights of a layer as trained; the others become zero.

    Attributes:
      support: the weights that stay, ``[b, d_in, d_out]`` bool.
    """

    support: Array

    bias: ClassVar[str] = "fixed"
    statistics: ClassVar[tuple[Statistic, ...]] = ()

    @property
    def shared(self) -> None:
        """Asks nothing of the network as a whole."""

    def check(self) -> None:
        """Does nothing: there is nothing to check."""

    def bind(self, kind: LayerKind, cascade: bool) -> "Hold":
        """The same method, since it fits every layer."""
        return self

    def conclude(self, data: LayerData, solved: None, kind: LayerKind) -> Answer:
        """The trained weights that stay."""
        W = jnp.where(self.support, data.W0, 0)
        result = jnp.full(len(W), results.DIRECT, jnp.int32)
        return Answer(W, None, result, {})
