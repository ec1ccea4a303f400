"""A leaf as tensors of a file, in the smallest of all forms.

Knows arrays; writes no file.
"""

import dataclasses
import hashlib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from nettrim_jax.files import coders, masks, values
from nettrim_jax.files.dtypes import CODES, bits_of
from nettrim_jax.files.leaves import CHUNK, StoredLeaf

NAMES = (*masks.NAMES, "codes", *coders.NAMES)  # what may be chosen from
_ENTRY = 90  # about the bytes of the header that one more tensor takes
_DENSE = 0.5  # share of entries other than zero from which on a mask may be worth none
_MANY = 2**14


class Piece(NamedTuple):
    """A tensor and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


class Form(NamedTuple):
    """A form of a leaf: words and bytes by part."""

    parts: dict[str, tuple[str, bytes]]

    @property
    def size(self) -> int:
        """The bytes that it takes in the file, about."""
        return sum(len(data) + len(word) + _ENTRY for word, data in self.parts.values())


def digests_of(data: memoryview) -> bytes:
    """The SHA-256 of each chunk of some bytes, one after another."""
    begins = range(0, max(len(data), 1), CHUNK)
    return b"".join(hashlib.sha256(data[k : k + CHUNK]).digest() for k in begins)


def encode(
    leaf: StoredLeaf, array: np.ndarray, allowed: Collection[str]
) -> tuple[StoredLeaf, dict[str, Piece]]:
    """A leaf's array as tensors, by their names.

    Args:
      leaf: what is known of it without looking at its values.
      array: its values.
      allowed: the names of the forms to choose from, beside a plain tensor.

    Returns:
      The leaf as the header describes it, and its tensors.
    """
    bits = bits_of(array)
    mask = bits != 0
    whole = mask.reshape(-1, 2).any(1) if array.dtype.itemsize == 16 else mask
    form = _smallest(leaf, bits, mask, allowed)
    raw = bits.view(np.uint8).data
    leaf = dataclasses.replace(
        leaf,
        nonzeros=int(np.count_nonzero(whole)),
        digests=digests_of(raw),
        parts={name: word for name, (word, _) in form.parts.items() if word},
    )
    if not form.parts:
        code = CODES.get(leaf.dtype)
        shape = leaf.shape if code else (len(raw),)
        pieces = {leaf.path: Piece(code or "U8", shape, raw)}
    else:
        named = leaf.tensors()
        pieces = {
            named[name].tensor: Piece("U8", (len(data),), data)
            for name, (_, data) in form.parts.items()
        }
    stored = sum(len(piece.data) for piece in pieces.values())
    return dataclasses.replace(leaf, stored_bytes=stored), pieces


def _smallest(
    leaf: StoredLeaf, bits: np.ndarray, mask: np.ndarray, allowed: Collection[str]
) -> Form:
    """The smallest form; one without parts is the plain tensor."""
    plain = Form({})
    if bits.nbytes <= _ENTRY or not set(allowed):
        return plain
    turn = "float" in leaf.dtype or "complex" in leaf.dtype
    left = int(np.count_nonzero(mask))
    found, size = plain, bits.nbytes + _ENTRY
    sparse = None
    if left < len(bits):
        sparse = _sparse(leaf, bits, mask, bits[mask], allowed, turn)
        if sparse is not None and sparse.size < size:
            found, size = sparse, sparse.size
    # among many entries with many zeros, those would only be found again
    if sparse is None or len(bits) <= _MANY or left >= _DENSE * len(bits):
        everywhere = np.ones(len(bits), bool)
        form = Form(_values(leaf, bits, everywhere, allowed, turn))
        found = form if form.size < size else found
    return found


def _sparse(
    leaf: StoredLeaf,
    bits: np.ndarray,
    mask: np.ndarray,
    kept: np.ndarray,
    allowed: Collection[str],
    turn: bool,
) -> Form | None:
    """The smallest form with a mask, if there is one."""
    parts = _values(leaf, kept, mask, allowed, turn)
    each = Form(parts).size / max(len(kept), 1)
    shape = masks.matrix_of(leaf.view)
    found: tuple[float, Form | None] = (np.inf, None)
    for form in masks.forms(mask, shape, allowed, min(each, leaf.width)):
        coder, data = coders.encode(form.data, allowed)
        own = {"mask": (f"{form.word}/{coder}", data)}
        more = int(np.count_nonzero(form.stored)) - len(kept)
        rough = Form({**own, **parts}).size + (more > 0) * 0.5 * more * each
        if rough >= found[0]:
            continue
        if more:
            stored = form.stored
            whole = Form({**own, **_values(leaf, bits[stored], stored, allowed, turn)})
        else:
            whole = Form({**own, **parts})
        if whole.size < found[0]:
            found = whole.size, whole
    return found[1]


def _values(
    leaf: StoredLeaf,
    kept: np.ndarray,
    stored: np.ndarray,
    allowed: Collection[str],
    turn: bool,
) -> dict[str, tuple[str, bytes]]:
    """The smallest parts that say some values; none if there are no values."""
    if not len(kept):
        return {}
    best = Form({"values": values.encode_planes(kept, turn, allowed)})
    if "codes" in allowed:
        for book in values.books(kept, leaf.view, stored):
            coder, data = coders.encode(book.codes, allowed)
            codes = f"{book.word}/{coder}", data
            form = Form({"codes": codes, "book": ("", book.values.tobytes())})
            best = min(best, form, key=lambda one: one.size)
    return best.parts
