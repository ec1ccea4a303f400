"""Index maps in NumPy: which entry of a leaf stands where after transposes and slices.

A weight may reach its operation through transposes, reshapes, casts and slices. They
only move entries, so pushing ``arange`` through them finds where each entry went, and
writing back is the inverse scatter. Entries that come from elsewhere (padding,
concatenated constants) are -1. Every array may have leading loop axes, one per
enclosing ``scan``, which the operations do not see.

Knows arrays; knows no program.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

SAME = frozenset(
    "convert_element_type copy copy_p optimization_barrier reduce_precision "
    "sharding_constraint stop_gradient pvary mesh_cast name".split()
)


def move(
    name: str, params: Mapping[str, Any], index: np.ndarray, loops: int
) -> list[np.ndarray] | None:
    """Pushes an index array through an operation with one array operand.

    Args:
      name: the primitive's name.
      params: its parameters.
      index: ``[*loops, *shape]``.
      loops: number of leading loop axes.

    Returns:
      One index array per output, or ``None`` if the operation is not an index map.
    """
    shape = index.shape[loops:]
    head = index.shape[:loops]
    skip = tuple(range(loops))
    if name == "convert_element_type":  # a cast to integers rounds
        floating = jnp.issubdtype(params["new_dtype"], jnp.floating)
        return [index] if floating else None
    if name in SAME:
        return [index]
    if name == "transpose":
        return [index.transpose(skip + tuple(loops + p for p in params["permutation"]))]
    if name == "reshape":
        order = params.get("dimensions") or range(len(shape))
        index = index.transpose(skip + tuple(loops + d for d in order))
        return [index.reshape(head + tuple(params["new_sizes"]))]
    if name == "squeeze":
        dims = {d % len(shape) for d in params["dimensions"]}
        kept = tuple(s for i, s in enumerate(shape) if i not in dims)
        return [index.reshape(head + kept)]
    if name == "broadcast_in_dim":
        target = tuple(params["shape"])
        sizes = [1] * len(target)
        for axis, at in enumerate(params["broadcast_dimensions"]):
            sizes[at] = shape[axis]
        return [np.broadcast_to(index.reshape(head + tuple(sizes)), head + target)]
    if name == "slice":
        strides = params["strides"] or (1,) * len(shape)
        cuts = zip(
            params["start_indices"], params["limit_indices"], strides, strict=True
        )
        return [index[(slice(None),) * loops + tuple(slice(*cut) for cut in cuts)]]
    if name == "pad":
        return [_padded(index, params["padding_config"], loops)]
    if name == "rev":
        return [np.flip(index, tuple(loops + d for d in params["dimensions"]))]
    if name == "split":
        cuts = np.cumsum(params["sizes"])[:-1]
        return list(np.split(index, cuts, axis=loops + params["axis"]))
    return None


def _padded(
    index: np.ndarray, config: tuple[tuple[int, int, int], ...], loops: int
) -> np.ndarray:
    """``lax.pad`` with -1: low, high and inner padding per axis; negative ones cut."""
    for axis, (low, high, inner) in enumerate(config, loops):
        size = index.shape[axis]
        spread = max(0, size + (size - 1) * inner)
        wide = np.full((*index.shape[:axis], spread, *index.shape[axis + 1 :]), -1)
        at = (slice(None),) * axis
        wide[(*at, slice(None, None, inner + 1))] = index
        wide = wide[(*at, slice(max(0, -low), spread - max(0, -high)))]
        ends = [(0, 0)] * index.ndim
        ends[axis] = (max(0, low), max(0, high))
        index = np.pad(wide, ends, constant_values=-1).astype(index.dtype)
    return index


def join(
    parts: list[np.ndarray | tuple[int, ...]], axis: int, loops: int
) -> np.ndarray:
    """Concatenates index arrays and shapes of constants, which become -1."""
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    head = np.broadcast_shapes(*(part.shape[:loops] for part in arrays))
    whole = []
    for part in parts:
        if isinstance(part, np.ndarray):
            whole.append(np.broadcast_to(part, head + part.shape[loops:]))
        else:
            whole.append(np.full(head + part, -1, arrays[0].dtype))
    return np.concatenate(whole, axis=loops + axis)


def groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list, list]]:
    """Which axes of a reshape's operand become which axes of its result.

    Returns pairs of axes of ``before`` and of ``after`` with equal products; an axis
    of size one is in its own pair, with no axis on the other side.
    """
    pairs: list[tuple[list, list]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        if i < len(before) and before[i] == 1:
            pairs.append(([i], []))
            i += 1
            continue
        if j < len(after) and after[j] == 1:
            pairs.append(([], [j]))
            j += 1
            continue
        left, right, a, b = [i], [j], before[i], after[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, left, i = a * before[i], [*left, i], i + 1
            else:
                b, right, j = b * after[j], [*right, j], j + 1
        pairs.append((left, right))
    return pairs


def relabel(
    name: str, params: Mapping[str, Any], labels: tuple, shape: tuple[int, ...]
) -> tuple | None:
    """Carries one label per axis through an index map; ``None`` if it is not one.

    Axes merged by a reshape take their common label, or ``"mixed"``; new axes of
    size one take ``"one"``. ``shape`` is the operand's.
    """
    if name in SAME:
        return labels
    if name == "transpose":
        return tuple(labels[p] for p in params["permutation"])
    if name == "rev":
        return labels
    if name == "squeeze":
        dims = {d % len(shape) for d in params["dimensions"]}
        return tuple(label for i, label in enumerate(labels) if i not in dims)
    if name == "broadcast_in_dim":
        target = tuple(params["shape"])
        out = ["one"] * len(target)
        for axis, at in enumerate(params["broadcast_dimensions"]):
            if target[at] != shape[axis]:
                return None
            out[at] = labels[axis]
        if any(label == "one" and target[i] != 1 for i, label in enumerate(out)):
            return None
        return tuple(out)
    if name == "reshape" and params.get("dimensions") is None:
        target = tuple(params["new_sizes"])
        out = ["one"] * len(target)
        for left, right in groups(shape, target):
            found = {labels[i] for i in left}
            label = found.pop() if len(found) == 1 else "mixed"
            for j in right:
                out[j] = label
        return tuple(out)
    return None
