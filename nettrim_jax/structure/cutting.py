"""Which indices of which leaves go, and leaves without them or with zeros there.

Knows groups and arrays; runs no program.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._trees import from_host, is_array, on_host
from nettrim_jax.results import MethodError
from nettrim_jax.structure.records import Entry, Group, Structure
from nettrim_jax.structure.registry import Kept
from nettrim_jax.typing import LeafPath

Remove = Mapping[str, Any]  # by the name of a group, which of its units


class Place(NamedTuple):
    """Where units of a group stand, and the axes along which they may differ."""

    leaf: int
    axis: int
    steps: tuple[int, ...]  # lengths of the leading axes


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """What is kept of one leaf.

    Attributes:
      path: its path.
      shape: its full shape.
      kept: per axis, the indices that are kept, ``[k]``, or ``[*steps, k]`` where
        every step of a loop has its own; None for all.
    """

    path: LeafPath
    shape: tuple[int, ...]
    kept: tuple[np.ndarray | None, ...]

    @property
    def small(self) -> tuple[int, ...]:
        """The shape that is left."""
        return tuple(
            size if kept is None else kept.shape[-1]
            for size, kept in zip(self.shape, self.kept, strict=True)
        )

    @property
    def first(self) -> Kept:
        """Per axis, the indices that are kept at the first step."""
        return tuple(None if kept is None else rows_of(kept)[0] for kept in self.kept)

    def then(self, later: "Leaf") -> "Leaf":
        """What is kept of the full leaf if of what is left this is kept."""
        pairs = zip(self.kept, later.kept, strict=True)
        return Leaf(self.path, self.shape, tuple(_within(*pair) for pair in pairs))

    def cut(self, array: Any) -> Any:
        """An array of the leaf's shape without what is removed."""
        if all(kept is None for kept in self.kept):
            return array
        if isinstance(array, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(self.small, array.dtype)
        host = on_host(array)
        out: Any = np.asarray(array) if host else jnp.asarray(array)
        for axis, kept in enumerate(self.kept):
            if kept is not None:
                out = _along(out, axis, kept)
        if host and not isinstance(array, np.ndarray):
            return from_host(out, array)
        return out


def _within(first: np.ndarray | None, later: np.ndarray | None) -> np.ndarray | None:
    """The indices of the full axis that are kept by both choices, per step."""
    if first is None or later is None:
        return later if first is None else first
    steps = first.shape[:-1] or later.shape[:-1]
    first, later = (
        np.broadcast_to(kept, (*steps, kept.shape[-1])) for kept in (first, later)
    )
    return np.take_along_axis(first, later, axis=-1)


def _along(array: Any, axis: int, kept: np.ndarray) -> Any:
    """The entries at the kept indices of an axis, per step if these differ."""
    steps = kept.ndim - 1
    shape = [1] * array.ndim
    shape[:steps] = kept.shape[:steps]
    shape[axis] = kept.shape[-1]
    index: list[Any] = []
    for at, size in enumerate(array.shape):
        own = [1] * array.ndim
        own[at] = size
        index.append(np.arange(size).reshape(own))
    index[axis] = kept.reshape(shape)
    if steps == 0:
        return array[(slice(None),) * axis + (kept,)]
    return array[tuple(index)]


def rows_of(units: np.ndarray) -> np.ndarray:
    """Units as ``[steps, k]``, one step if there are none."""
    return units.reshape(math.prod(units.shape[:-1]), units.shape[-1])


def indices_of(entry: Entry, units: np.ndarray) -> np.ndarray:
    """Which indices of an entry's axis are some units', ``[*steps, n]`` bool."""
    hit = np.stack([np.isin(entry.units, row) for row in rows_of(units)])
    return hit.reshape(*units.shape[:-1], -1)


def units_left(group: Group, leaves: Sequence[Leaf]) -> np.ndarray:
    """The units of a group that are kept, ``[k]`` or ``[*steps, k]``.

    An index that stands for two units goes with either of them, so a unit is kept if
    one of its indices is.
    """
    entry = next(entry for entry in group.entries if entry.leaf is not None)
    assert entry.leaf is not None
    kept = leaves[entry.leaf].kept[entry.axis]
    if kept is None:
        return np.arange(group.count)
    rows = [np.unique(units[units >= 0]) for units in entry.units[rows_of(kept)]]
    if not group.steps:
        return rows[0]
    return np.stack(rows).reshape(*kept.shape[:-1], -1)


def entries_of(group: Group, leaves: Sequence[Any]) -> list[Entry]:
    """The entries of a group in leaves that can be zero; an integer may be an index."""
    return [
        entry
        for entry in group.entries
        if entry.leaf is not None
        and jnp.issubdtype(leaves[entry.leaf].dtype, jnp.inexact)
    ]


def places_of(group: Group, leaves: Sequence[Any]) -> list[tuple[Place, np.ndarray]]:
    """The places of these entries, each with the unit of every index of its axis."""
    return [
        (Place(entry.leaf, entry.axis, group.steps), entry.units)
        for entry in entries_of(group, leaves)
        if entry.leaf is not None
    ]


def zeroed(
    leaves: Sequence[Any], places: Sequence[tuple[Place, Any]], keep: Any
) -> list[Any]:
    """The leaves with zeros in the place of units.

    Args:
      leaves: the arrays of the params.
      places: where the units of a group stand.
      keep: which of them stay, ``[s, k]`` bool, with a row for each step or one for
        all; an array of NumPy, or of a program.
    """
    out = list(leaves)
    for place, units in places:
        leaf = out[place.leaf]
        host = isinstance(keep, np.ndarray) and on_host(leaf)
        xp: Any = np if host else jnp
        along = xp.where(units >= 0, keep[:, xp.maximum(units, 0)], True)
        shape = [1] * leaf.ndim
        shape[: len(place.steps)] = place.steps
        shape[place.axis] = len(units)
        new = xp.where(along.reshape(shape), leaf, xp.zeros((), leaf.dtype))
        out[place.leaf] = from_host(new, leaf) if host else new
    return out


def chosen(structure: Structure, remove: Remove) -> dict[str, np.ndarray]:
    """The units to remove, checked, as ``[k]`` or ``[*steps, k]`` of integers.

    Raises:
      MethodError: there is no such group or unit, none would be left, or steps would
        not be left as many.
    """
    if not isinstance(remove, Mapping):
        raise MethodError(
            f"remove: expected a dict from names of groups to units, got "
            f"{type(remove).__name__}; the names are those of nettrim_jax.units"
        )
    names = [group.name for group in structure.groups]
    out = {}
    for name, given in remove.items():
        if name not in names:
            raise MethodError(
                f"remove: no group has the name {name!r}; the groups are {names}"
                + _why_not(structure, name)
            )
        out[name] = _units(structure[name], given)
    return out


def _why_not(structure: Structure, name: str) -> str:
    found = [one for one in structure.refused if one.path == name]
    said = "; ".join(f"its axis {one.axis} stays: {one.reason}" for one in found)
    return f". {said}" if said else ""


def _units(group: Group, given: Any) -> np.ndarray:
    units = np.asarray(given)
    if units.dtype == bool and units.shape[-1:] == (group.count,):
        counts = units.sum(-1)
        if np.unique(counts).size > 1:
            raise MethodError(
                f"remove[{group.name!r}]: every step must remove as many units, got "
                f"{counts.tolist()}"
            )
        where = np.argsort(~units, axis=-1, kind="stable")
        units = where[..., : int(counts.flat[0]) if counts.size else 0]
    if units.size == 0:
        units = units.astype(np.int32)
    if units.dtype.kind not in "iu" or units.shape[:-1] not in ((), group.steps):
        raise MethodError(
            f"remove[{group.name!r}]: expected indices of units, [k]"
            + (f" or {[*group.steps, 'k']}" if group.steps else "")
            + f", or booleans [{group.count}], got {units.dtype} {list(units.shape)}"
        )
    if units.size and (units.min() < 0 or units.max() >= group.count):
        raise MethodError(
            f"remove[{group.name!r}]: expected units from 0 to {group.count - 1}, got "
            f"{int(units.min())} to {int(units.max())}"
        )
    rows = [np.unique(row) for row in rows_of(units)]
    if len({len(row) for row in rows}) > 1:
        raise MethodError(
            f"remove[{group.name!r}]: every step must remove as many units, got "
            f"{[len(row) for row in rows]}"
        )
    units = np.stack(rows).reshape(*units.shape[:-1], -1)
    if units.shape[-1] >= group.count:
        raise MethodError(
            f"remove[{group.name!r}]: all {group.count} units would go; one has to stay"
        )
    return units


def leaves(
    structure: Structure,
    remove: Mapping[str, np.ndarray],
    paths: Sequence[LeafPath],
    shapes: Sequence[tuple[int, ...]],
) -> list[Leaf]:
    """What is kept of every leaf without some units."""
    gone: dict[tuple[int, int], np.ndarray] = {}
    for name, units in remove.items():
        for entry in structure[name].entries:
            if entry.leaf is None or not units.size:
                continue
            hit = indices_of(entry, units)
            at = entry.leaf, entry.axis
            gone[at] = gone[at] | hit if at in gone else hit
    out = []
    for k, (path, shape) in enumerate(zip(paths, shapes, strict=True)):
        kept = tuple(_left(path, a, gone.get((k, a))) for a in range(len(shape)))
        out.append(Leaf(path, tuple(shape), kept))
    return out


def _left(path: LeafPath, axis: int, gone: np.ndarray | None) -> np.ndarray | None:
    if gone is None or not gone.any():
        return None
    rows = rows_of(gone)
    left = [np.flatnonzero(~row) for row in rows]
    counts = {len(one) for one in left}
    if len(counts) > 1 or 0 in counts:
        raise MethodError(
            f"remove: of {path}, axis {axis}, {sorted(counts)} indices would be left "
            "at the steps of a loop; expected as many at each, and one at least"
        )
    return np.stack(left).reshape(*gone.shape[:-1], -1)


def keys_of(params: Any) -> tuple[tuple[str, ...], ...]:
    """The keys that lead to each array of the params."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return tuple(tuple(map(str, keys)) for keys, leaf in leaves if is_array(leaf))


def cut_tree(tree: Any, leaves: Sequence[Leaf], keys: Sequence[Any]) -> Any:
    """A tree in which leaves of the params, or of their shapes, stand somewhere.

    A leaf is taken for that leaf of the params whose path its own path ends with, if it
    has the same shape.

    Raises:
      MethodError: there is no such leaf.
    """
    by_end = dict(zip(map(tuple, keys), leaves, strict=True))
    found = 0

    def one(path: Any, value: Any) -> Any:
        nonlocal found
        if not is_array(value):
            return value
        names = tuple(map(str, path))
        for start in range(len(names) + 1):
            leaf = by_end.get(names[start:])
            if leaf is not None and tuple(value.shape) == leaf.shape:
                found += 1
                return leaf.cut(value)
        return value

    out = jax.tree_util.tree_map_with_path(one, tree)
    if not found:
        raise MethodError(
            "cut: no array of this tree has the path and the shape of one of the "
            "params; expected a tree like the params, or one in which such trees "
            "stand, as the state of an optimizer"
        )
    return out
