"""What can be removed from a network, as records that print as a table.

Knows text and arrays; finds nothing.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from nettrim_jax.report.tables import fit, grid
from nettrim_jax.typing import LeafPath


class Entry(NamedTuple):
    """Where the units of a group stand along one axis of one leaf.

    Attributes:
      leaf: position of the leaf among the arrays of the params; None for an array that
        ``apply_fn`` closes over.
      path: its path, or ``"constant 0"`` and so on for what is closed over.
      axis: the axis.
      units: of each index of that axis its unit, ``[n]``; -1 where it has none.
      way: where axes are merged, which of them is meant: ``"0"`` for the slower one,
        ``"1"`` for the faster, ``"01"`` for the faster part of the slower, and so on.
    """

    leaf: int | None
    path: LeafPath
    axis: int
    units: np.ndarray
    way: str = ""

    @property
    def indices(self) -> np.ndarray:
        """The indices that belong to the group."""
        return np.flatnonzero(self.units >= 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Units of one kind, any of which can be removed from a network.

    Attributes:
      name: the path of the first leaf that makes them, with the kind behind it where
        several groups would have the same.
      kind: ``"neuron"``, ``"channel"``, ``"head"``, ``"dimension"`` (of heads),
        ``"group"`` (of channels) or ``"state"`` (of a loop).
      count: how many there are.
      steps: the lengths of the loops whose every step may remove units of its own, as
        many as every other; empty if there is one choice.
      entries: where they stand.
      producers: the paths of the leaves whose products make them.
      consumers: the paths of the leaves whose products sum over them.
    """

    name: str
    kind: str
    count: int
    steps: tuple[int, ...]
    entries: tuple[Entry, ...]
    producers: tuple[LeafPath, ...]
    consumers: tuple[LeafPath, ...]


class Refusal(NamedTuple):
    """Indices of a leaf that have to stay.

    Attributes:
      path: the leaf.
      axis: the axis.
      count: how many of its indices have to.
      reason: the operation that needs them, in words.
    """

    path: LeafPath
    axis: int
    count: int
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """What can be removed from a network, and what not; prints as a table.

    Attributes:
      groups: the groups of units, in order of the leaves.
      refused: what has to stay, per axis of a leaf of two or more indices.
    """

    groups: tuple[Group, ...]
    refused: tuple[Refusal, ...]

    def __getitem__(self, name: str) -> Group:
        """The group of this name."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(f"{name}: the groups are {[g.name for g in self.groups]}")

    def __str__(self) -> str:
        columns = [("kind", 9), ("units", 7), ("leaves", 6), ("steps", 6)]
        rows = [
            (
                group.name,
                [
                    group.kind,
                    group.count,
                    len({entry.path for entry in group.entries}),
                    "x".join(map(str, group.steps)),
                ],
            )
            for group in self.groups
        ]
        lines = grid(columns, rows) if rows else ["no group of units can be removed"]
        reasons: dict[str, list[str]] = {}
        for one in self.refused:
            reasons.setdefault(one.reason, []).append(f"{one.path}[{one.axis}]")
        for reason, where in reasons.items():
            text = ", ".join(where[:4]) + (", …" if len(where) > 4 else "")
            lines.append(fit(f"stays: {text}: {reason}"))
        return "\n".join(lines)
