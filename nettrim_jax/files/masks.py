"""Which entries of a leaf are stored, as bytes, and back.

Every form is that of a truth value for each entry of a matrix ``[rows, d]``: the leaf,
whose last axis has ``d`` entries. It is true for all entries other than zero, and maybe
for some others.

- ``bits,b,c,k``: a bit for each block ``[b, c]`` of the matrix, those at its end cut.
  The lowest bit of a byte is the first. Blocks ``[1, 1]`` are a bitmask.
- ``gaps,E,k``: a byte each is the number of entries to skip before one that is stored;
  ``E`` skips so many and stores none (Han, Mao and Dally, 2016).
- ``nm,n,m,axis,k``: of every ``m`` entries along an axis of the matrix ``n`` are
  stored; a byte each says which: the place of the set in their lexicographic order.

The last number, ``k``, is that of the bytes.

Knows bytes; knows no file.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

NAMES = ("bitmask", "gaps", "nm", "blocks")
Shape = tuple[int, int]


class Mask(NamedTuple):
    """A form of a mask."""

    word: str  # what it is called in a file
    data: np.ndarray  # bytes that say it
    stored: np.ndarray  # [rows * d] bool, the entries that are stored


def matrix_of(shape: tuple[int, ...]) -> Shape:
    """The rows and columns of the matrix."""
    if not shape:
        return 1, 1
    return math.prod(shape[:-1]), shape[-1]


def forms(mask: np.ndarray, shape: Shape, allowed: Any, cost: float) -> list[Mask]:
    """All forms that may be the smallest.

    Args:
      mask: the entries other than zero, ``[rows * d] bool``.
      shape: of the matrix.
      allowed: the names of the forms to try.
      cost: about how many bytes an entry takes.
    """
    out = []
    if "bitmask" in allowed:
        data = np.packbits(mask, bitorder="little")
        out.append(Mask(f"bits,1,1,{len(data)}", data, mask))
    if "gaps" in allowed and mask.any():
        out.append(_gaps(mask))
    plain = _information(mask.size, int(mask.sum()))
    if "nm" in allowed:
        out += _patterns(mask, shape, plain, cost)
    if "blocks" in allowed:
        out += _blocks(mask, shape, plain, cost)
    return out


def _information(count: int, ones: int) -> float:
    """Bytes that say which of so many things are chosen."""
    share = np.array([ones, count - ones]) / max(count, 1)
    return -count * float(np.sum(share * np.log2(np.where(share > 0, share, 1)))) / 8


def _gaps(mask: np.ndarray) -> Mask:
    kind = np.int32 if mask.size < 2**31 else np.int64  # half of the memory
    places = np.flatnonzero(mask).astype(kind)
    gaps = np.diff(places, prepend=kind(-1))
    gaps -= 1
    best = (math.inf, 0)
    for most in (15, 31, 63, 127, 255):
        counts = np.bincount(gaps % most, minlength=most + 1)
        counts[most] = int(np.sum(gaps // most))
        share = counts[counts > 0] / counts.sum()
        # about half a byte for the code of each value beside the codes
        size = -counts.sum() * float(share @ np.log2(share)) / 8 + most / 2
        best = min(best, (size, most))
    most = best[1]
    skips = gaps // most
    ends = np.cumsum(skips + 1, dtype=kind)
    ends -= 1
    data = np.full(int(ends[-1]) + 1, most, np.uint8)
    data[ends] = gaps % most
    return Mask(f"gaps,{most},{len(data)}", data, mask)


def _sets(n: int, m: int) -> np.ndarray:
    """All sets of ``n`` of ``m``, in lexicographic order, ``[k, m]`` bool."""
    chosen = np.array(list(itertools.combinations(range(m), n))).reshape(-1, n)
    out = np.zeros((len(chosen), m), bool)
    np.put_along_axis(out, chosen, True, 1)
    return out


def _grouped(mask: np.ndarray, shape: Shape, m: int, axis: int) -> np.ndarray:
    """The mask in groups along an axis, ``[groups, m]``."""
    rows, d = shape
    if axis == 1:
        return mask.reshape(-1, m)
    return mask.reshape(rows // m, m, d).transpose(0, 2, 1).reshape(-1, m)


def _ungrouped(groups: np.ndarray, shape: Shape, m: int, axis: int) -> np.ndarray:
    rows, d = shape
    if axis == 1:
        return groups.reshape(-1)
    return groups.reshape(rows // m, d, m).transpose(0, 2, 1).reshape(-1)


def _patterns(mask: np.ndarray, shape: Shape, plain: float, cost: float) -> list[Mask]:
    out = []
    for axis, m in itertools.product((0, 1), (2, 4, 8, 16)):
        if not mask.size or shape[axis] % m:
            continue
        groups = _grouped(mask, shape, m, axis)
        counts = groups.sum(1)
        n, kinds = int(counts.max()), math.comb(m, int(counts.max()))
        size = len(groups) * math.log2(kinds) / 8
        size += (n * len(groups) - int(counts.sum())) * cost
        if not 0 < n < m or kinds > 256 or size > 0.99 * plain:
            continue
        # groups with fewer than n take the first zeros, too
        order = np.argsort(~groups, axis=1, kind="stable")[:, :n]
        stored = np.zeros(groups.shape, bool)
        np.put_along_axis(stored, order, True, 1)
        powers = 1 << np.arange(m, dtype=np.int64)
        rank = np.zeros(2**m, np.uint8)
        rank[_sets(n, m) @ powers] = np.arange(kinds)
        data = rank[stored @ powers]
        word = f"nm,{n},{m},{axis},{len(data)}"
        out.append(Mask(word, data, _ungrouped(stored, shape, m, axis)))
    return out


def _halved(grid: np.ndarray, axis: int) -> np.ndarray:
    """Pairs of blocks along an axis as one."""
    pad = [(0, 0), (0, 0)]
    pad[axis] = (0, grid.shape[axis] % 2)
    grid = np.pad(grid, pad)
    index = [slice(None), slice(None)]
    index[axis] = slice(0, None, 2)
    other = list(index)
    other[axis] = slice(1, None, 2)
    return grid[tuple(index)] | grid[tuple(other)]


def _blocks(mask: np.ndarray, shape: Shape, plain: float, cost: float) -> list[Mask]:
    """The best of blocks of powers of two, rows and columns, if it may be smaller."""
    if not mask.size:
        return []
    grids: dict[Shape, np.ndarray] = {(1, 1): mask.reshape(shape)}
    for b in (2, 4, 8, 16, 32):
        grids[b, 1] = _halved(grids[b // 2, 1], 0)
    for b, c in itertools.product((1, 2, 4, 8, 16, 32), (2, 4, 8, 16, 32)):
        grids[b, c] = _halved(grids[b, c // 2], 1)
    grids[1, shape[1]] = np.any(grids[1, 1], axis=1)[:, None]
    grids[shape[0], 1] = np.any(grids[1, 1], axis=0)[None, :]
    best: tuple[float, Shape] = (plain + cost * int(mask.sum()), (1, 1))
    for (b, c), grid in grids.items():
        if (b > shape[0] or c > shape[1]) or b * c == 1:
            continue
        # blocks at the end are smaller
        high = np.minimum(b, shape[0] - b * np.arange(grid.shape[0]))
        wide = np.minimum(c, shape[1] - c * np.arange(grid.shape[1]))
        stored = int(high @ (grid @ wide))
        size = _information(grid.size, int(grid.sum())) + cost * stored
        best = min(best, (size, (b, c)))
    if best[1] == (1, 1):
        return []
    b, c = best[1]
    grid = grids[b, c]
    data = np.packbits(grid.ravel(), bitorder="little")
    return [Mask(f"bits,{b},{c},{len(data)}", data, _spread(grid, shape, b, c))]


def _spread(grid: np.ndarray, shape: Shape, b: int, c: int) -> np.ndarray:
    """The entries of some blocks."""
    rows = np.repeat(grid, b, axis=0)[: shape[0]]
    return np.ascontiguousarray(np.repeat(rows, c, axis=1)[:, : shape[1]]).reshape(-1)


def size_of(word: str, shape: Shape) -> int:
    """How many bytes say a mask.

    Raises:
      ValueError: there is no such form, or it does not fit the shape.
    """
    name, numbers, size = _read(word)
    count, wanted = shape[0] * shape[1], -1
    if name == "gaps" and len(numbers) == 1 and 0 < numbers[0] < 256:
        wanted = min(size, count)
    elif name == "nm" and len(numbers) == 3 and numbers[2] < 2:
        n, m, axis = numbers
        if 0 < n < m <= 16 and math.comb(m, n) <= 256 and not shape[axis] % m:
            wanted = count // m
    elif name == "bits" and len(numbers) == 2 and min(numbers) > 0:
        wanted = (-(-shape[0] // numbers[0]) * -(-shape[1] // numbers[1]) + 7) // 8
    if size != wanted:
        raise ValueError(f"there is no mask {word!r} of a matrix {list(shape)}")
    return size


def _read(word: str) -> tuple[str, list[int], int]:
    """The name of a form, its numbers, and that of its bytes."""
    name, *numbers = word.split(",")
    if not numbers or not all(
        n.isascii() and n.isdigit() and len(n) < 19 for n in numbers
    ):
        raise ValueError(f"there is no mask {word!r}")
    *numbers, size = (int(n) for n in numbers)
    return name, numbers, size


def decode(word: str, data: np.ndarray, shape: Shape) -> np.ndarray:
    """The entries that are stored, ``[rows * d] bool``, from what says it.

    Raises:
      ValueError: it says none of this shape.
    """
    name, numbers, _ = _read(word)
    count = shape[0] * shape[1]
    if name == "gaps":
        most, out = numbers[0], np.zeros(count, bool)
        if data.size and int(data.max()) > most:
            raise ValueError(f"a gap is larger than {most}")
        ends = np.cumsum(data + (data < most).astype(np.int64))
        if data.size and int(ends[-1]) > count:
            raise ValueError(f"its gaps reach beyond its {count} entries")
        out[ends[data < most] - 1] = True
        return out
    if name == "nm":
        n, m, axis = numbers
        sets = _sets(n, m)
        if data.size and int(data.max()) >= len(sets):
            raise ValueError(f"there are {len(sets)} sets of {n} of {m}")
        return _ungrouped(sets[data], shape, m, axis)
    b, c = numbers
    grid = -(-shape[0] // b), -(-shape[1] // c)
    bits = np.unpackbits(data, count=grid[0] * grid[1], bitorder="little").view(bool)
    if b * c == 1:
        return bits
    b, c = min(b, shape[0]), min(c, shape[1])
    return _spread(bits.reshape(grid), shape, b, c)
