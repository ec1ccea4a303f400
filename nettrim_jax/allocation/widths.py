"""Splits the bytes of a file among layers that can be written with more or fewer.

Every layer is solved in each of several ways, from the most bytes to the fewest, and
measured alone: what the file takes, and how far the output moves on the rows that
steer. ``curves`` chooses, and whole networks of the choice are tried for what they
really take.
Knows the engine and meters; knows no file and no particular method.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from nettrim_jax import _sharding
from nettrim_jax.allocation import curves as splitting
from nettrim_jax.allocation.curves import Point
from nettrim_jax.allocation.evaluation import Meter, meter_on
from nettrim_jax.allocation.search import Leaves, Workshop
from nettrim_jax.calibration.batches import Part, Source
from nettrim_jax.calibration.splits import Dealt
from nettrim_jax.execution import orders
from nettrim_jax.execution.options import Options
from nettrim_jax.execution.orders import Methods
from nettrim_jax.methods.base import Method
from nettrim_jax.tracing.sites import Network
from nettrim_jax.typing import Array

TURNS = 4  # networks of which each corrects what curves say of the next one
OVER = 1.02  # ratio of what curves say of a network to a budget that it may still fit

Size = Callable[[Mapping[int, Array]], int]  # of the file with other leaves, by place
Choice = tuple[int, ...]  # per joined sites, a position among the ways


class Joined(NamedTuple):
    """Sites that share arrays, and so have one way."""

    sites: tuple[int, ...]
    leaves: tuple[int, ...]


class Curves(NamedTuple):
    """What joined sites take and move in each way."""

    joined: list[Joined]
    curves: list[list[Point]]  # bytes are those beyond ``whole``
    ways: Sequence[Methods]
    whole: int  # bytes of the file as it was given
    check: Meter | None = None

    def size(self, choice: Choice) -> int:
        """The bytes of a file, as the joined sites alone say it."""
        pairs = zip(self.curves, choice, strict=True)
        return self.whole + sum(curve[i].nonzeros for curve, i in pairs)

    def within(self, most: int) -> Choice | None:
        """The choice of least movement of so many bytes; None if there is none."""
        return splitting.within(self.curves, most - self.whole)

    def least(self) -> Choice:
        """The choice of the fewest bytes."""
        return tuple(
            min(range(len(curve)), key=lambda i: curve[i].nonzeros)
            for curve in self.curves
        )

    def even(self, way: int) -> Choice:
        """The same way for all sites."""
        return (way,) * len(self.joined)

    def methods(self, choice: Choice) -> dict[int, Method]:
        """The method of every site."""
        way = {
            k: i for one, i in zip(self.joined, choice, strict=True) for k in one.sites
        }
        return {k: self.ways[way[k]][k] for k in self.ways[0]}

    @_sharding.own()
    def moved(self, leaves: Leaves) -> float:
        """How far a network's output moves on the rows that check."""
        assert self.check is not None
        cost = self.check.cost(leaves, self.check.trained)
        return cost if math.isfinite(cost) else math.inf


class Tried(NamedTuple):
    """A whole network of one choice."""

    size: int  # bytes of its file
    cost: float  # how far its output moves on the rows that check
    done: Any


@_sharding.own()
def measured(
    source: Source,
    dealt: Dealt,
    parts: Iterable[Part],
    *,
    ways: Sequence[Methods],
    options: Options,
    size: Size,
    asked: str,
) -> Curves:
    """Solves and measures all layers in all ways.

    Args:
      source: the network.
      dealt: its rows.
      parts: those to solve on.
      ways: the methods of all sites, from the most bytes to the fewest.
      options: how to solve.
      size: the bytes of the file.
      asked: the setting that asks for it.
    """
    seen = orders.observe(parts, ways[0], options)
    steer = meter_on(source.of(dealt.steer, dealt.steer_weights), asker=asked)
    check = meter_on(source.of(dealt.check, dealt.check_weights), asker=asked)
    shop = Workshop(seen, ways[0], ways[0], options, steer)
    mine, whole = joined_of(shop.network, ways[0]), size({})
    curves: list[list[Point]] = [[] for _ in mine]
    for at, methods in enumerate(ways):
        options.show(0, f"way {at + 1} of {len(ways)}")
        new, _ = shop.solve(methods, options)
        for one, curve in zip(mine, curves, strict=True):
            arrays = {k: new[k] for k in one.leaves}
            leaves = [arrays.get(k, leaf) for k, leaf in enumerate(shop.base)]
            # that fewer bytes move the output less is noise
            last = curve[-1].cost if curve else 0.0
            curve.append(Point(size(arrays) - whole, max(shop.cost(leaves), last)))
    return Curves(mine, curves, ways, whole, check)


def joined_of(network: Network, asked: Methods) -> list[Joined]:
    """The sites, together where they share an array."""
    out: list[Joined] = []
    for k in asked:
        site = network.sites[k]
        mine = Joined((k,), (site.leaf, *([] if site.bias is None else [site.bias[0]])))
        near = [one for one in out if set(one.leaves) & set(mine.leaves)]
        out = [one for one in out if one not in near]
        sites = tuple(k for one in [*near, mine] for k in one.sites)
        leaves = dict.fromkeys(k for one in [*near, mine] for k in one.leaves)
        out.append(Joined(sites, tuple(leaves)))
    return out


def settled(curves: Curves, most: int, run: Callable[[Choice], Tried]) -> Tried:
    """The best network whose file takes at most so many bytes; else the smallest.

    What curves say of a file is corrected by what the last one really took. The choice
    is compared with the same way for all sites, the widest that fits.

    Args:
      curves: the curves.
      most: the budget.
      run: makes the network of a choice.
    """
    tried: dict[Choice, Tried] = {}
    choice = curves.within(most) or curves.least()
    while choice not in tried and len(tried) < TURNS:
        tried[choice] = run(choice)
        more = tried[choice].size - curves.size(choice)
        choice = curves.within(most - more) or curves.least()
    while not any(one.size <= most for one in tried.values()):
        below = curves.within(min(map(curves.size, tried)) - 1)
        choice = below or curves.least()
        if choice in tried:
            return min(tried.values(), key=lambda one: one.size)
        tried[choice] = run(choice)
    for way in range(len(curves.ways)):
        choice = curves.even(way)
        if curves.size(choice) > OVER * most:
            continue
        if choice not in tried:
            tried[choice] = run(choice)
        if tried[choice].size <= most:
            break
    fits = [one for one in tried.values() if one.size <= most]
    return min(fits, key=lambda one: one.cost)
