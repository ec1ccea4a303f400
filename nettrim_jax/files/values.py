"""The values of the entries that are stored, as bytes, and back.

- ``planes``: the first, that is lowest, bytes of all values, then the second ones, and
  so on. Those of floating-point numbers are turned by one bit before, so that the
  exponent is a byte of its own where it has eight bits.
- ``codes``: a byte each, the place of the value in a book of at most 256 values: one
  for the leaf, or one for each slice along some axes, such as for each unit.

Knows bit patterns; knows no file.
"""

import itertools
import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from nettrim_jax.files import coders

MOST = 256  # values of a book
_MANY = 2**20  # values of which one book is enough
_SAMPLE = 2**14  # values by which a book is given up early


def _turned(bits: np.ndarray, by: int) -> np.ndarray:
    """The patterns with their bits turned to the left."""
    width = 8 * bits.dtype.itemsize
    left, right = (bits.dtype.type(n % width) for n in (by, -by))
    return bits << left | bits >> right


def encode_planes(
    bits: np.ndarray, turn: bool, allowed: Collection[str]
) -> tuple[str, bytes]:
    """Values as byte planes, each by the coder that makes it smallest.

    Returns:
      How they are stored, ``"turned/raw/lzma:2431"``, and the bytes.
    """
    size = bits.dtype.itemsize
    turn = turn and size > 1
    planes = (_turned(bits, 1) if turn else bits).view(np.uint8).reshape(-1, size)
    words, out = ["turned" if turn else "planes"], []
    for k in range(size):
        name, data = coders.encode(np.ascontiguousarray(planes[:, k]), allowed)
        words.append(name if name == coders.RAW else f"{name}:{len(data)}")
        out.append(data)
    return "/".join(words), b"".join(out)


def _planes(word: str, size: int, count: int) -> list[tuple[str, int]]:
    """The coder of each plane, and how many bytes it stores."""
    kind, *planes = word.split("/")
    if kind not in ("planes", "turned") or len(planes) != size:
        raise ValueError(f"{word!r} are no planes of {size} bytes")
    out = []
    for plane in planes:
        name, _, length = plane.partition(":")
        if name == coders.RAW and not length:
            out.append((name, count))
        elif length.isascii() and length.isdigit() and len(length) < 19:
            out.append((name, int(length)))
        else:
            raise ValueError(f"{word!r} does not say how long {name!r} is")
    return out


def most_of_planes(word: str, size: int, count: int) -> int:
    """How many bytes planes of so many values take at most.

    Raises:
      ValueError: there are no such planes.
    """
    planes = _planes(word, size, count)
    if any(length > coders.most(name, count) for name, length in planes):
        raise ValueError(f"{word!r} is longer than {count} values")
    return sum(length for _, length in planes)


def decode_planes(word: str, stored: bytes, size: int, count: int) -> np.ndarray:
    """So many values of ``size`` bytes, as bit patterns.

    Raises:
      ValueError: they are not so many.
    """
    out = np.zeros((count, size), np.uint8)
    if len(stored) != most_of_planes(word, size, count):
        raise ValueError(f"{word!r} of {count} values has {len(stored)} bytes")
    at = 0
    for k, (name, length) in enumerate(_planes(word, size, count)):
        out[:, k] = coders.decode(name, stored[at : at + length], count)
        at += length
    bits = out.view(f"<u{size}").reshape(-1)
    return _turned(bits, -1) if word.startswith("turned") else bits


class Book(NamedTuple):
    """Values as places in a book, or in one per slice."""

    word: str  # "32", or "32,1" for a book for each slice along axis 1
    codes: np.ndarray  # [k] uint8
    values: np.ndarray  # [slices * size] of bit patterns


def slices_of(shape: tuple[int, ...], axes: Sequence[int]) -> int:
    """The number of slices along some axes."""
    return math.prod(shape[axis] for axis in axes)


def _narrow(count: int) -> type[np.signedinteger]:
    """Integers for places among so many, in half of the memory where that is enough."""
    return np.int32 if count < 2**31 else np.int64


def slice_of(
    shape: tuple[int, ...], axes: Sequence[int], stored: np.ndarray
) -> np.ndarray:
    """The slice that each stored entry lies in, ``[k]``."""
    sizes = [shape[axis] if axis in axes else 1 for axis in range(len(shape))]
    count = math.prod(sizes)
    numbers = np.arange(count, dtype=_narrow(count)).reshape(sizes)
    return np.broadcast_to(numbers, shape).reshape(-1)[stored]


def books(bits: np.ndarray, shape: tuple[int, ...], stored: np.ndarray) -> list[Book]:
    """All books that may be the smallest, from none to several.

    Args:
      bits: the values, ``[k]``.
      shape: of the leaf.
      stored: the entries that they are, ``[entries] bool``.
    """
    if not bits.size:
        return []
    whole = _whole(bits)
    if whole is not None and len(bits) > _MANY:
        return [whole]
    last = len(shape) - 1
    choices = [(axis,) for axis in range(len(shape))]
    choices += [(*some, last) for some in itertools.combinations(range(last), 1)]
    found = (_sliced(bits, shape, stored, axes) for axes in choices)
    return [book for book in (whole, *found) if book is not None]


def _whole(bits: np.ndarray) -> Book | None:
    if len(np.unique(bits[:_SAMPLE])) > MOST:
        return None
    values, codes = np.unique(bits, return_inverse=True)
    if len(values) > min(MOST, max(len(bits) // 2, 1)):
        return None
    return Book(f"{len(values)}", codes.reshape(-1).astype(np.uint8), values)


def _sliced(
    bits: np.ndarray, shape: tuple[int, ...], stored: np.ndarray, axes: tuple[int, ...]
) -> Book | None:
    slices = slices_of(shape, axes)
    if not 1 < slices <= len(bits) // 4:
        return None
    where = slice_of(shape, axes, stored)
    one = bits[where == where[0]]
    if len(np.unique(one)) > min(MOST, max(len(one) // 2, 1)):
        return None
    order = np.lexsort((bits, where))
    ranked, lines = bits[order], where[order]
    del where
    first = np.ones(len(bits), bool)
    first[1:] = (lines[1:] != lines[:-1]) | (ranked[1:] != ranked[:-1])
    # of the value, among those of all slices
    number = np.cumsum(first, dtype=_narrow(len(bits)))
    number -= 1
    values, owners = ranked[first], lines[first]
    begins = np.searchsorted(owners, np.arange(slices))
    counts = np.diff(begins, append=len(values))
    size = int(counts.max())
    if size > MOST or 2 * slices * size > len(bits):
        return None
    places = np.arange(len(values)) - begins[owners]
    book = np.zeros((slices, size), bits.dtype)
    book[owners, places] = values
    codes = np.zeros(len(bits), np.uint8)
    codes[order] = places.astype(np.uint8)[number]
    word = ",".join(str(n) for n in (size, *axes))
    return Book(word, codes, book.reshape(-1))


def read_book(word: str, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...], int]:
    """The size of a book, its axes, and the number of values of all books.

    Raises:
      ValueError: there is no such book for the shape.
    """
    size, *axes = (
        int(n) if n.isascii() and n.isdigit() and len(n) < 4 else -1
        for n in word.split(",")
    )
    fits = 0 < size <= MOST and all(0 <= axis < len(shape) for axis in axes)
    fits = fits and list(axes) == sorted(set(axes))
    count = size * slices_of(shape, axes) if fits else 0
    if not fits or count > math.prod(shape):
        raise ValueError(f"there is no book {word!r} for a shape {list(shape)}")
    return size, tuple(axes), count


def look_up(
    word: str,
    codes: np.ndarray,
    book: np.ndarray,
    shape: tuple[int, ...],
    stored: np.ndarray,
) -> np.ndarray:
    """The values that codes stand for.

    Raises:
      ValueError: a code lies beyond its book.
    """
    size, axes, count = read_book(word, shape)
    if codes.size and int(codes.max()) >= size:
        raise ValueError(f"code {int(codes.max())} is beyond the book of {size} values")
    if not axes:
        return book[codes]
    places = slice_of(shape, axes, stored).astype(_narrow(count), copy=False)
    places *= size
    places += codes
    return book[places]
