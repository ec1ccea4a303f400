"""The layout of safetensors: a header in JSON, and data behind it.

Eight bytes are the length of the header, the lowest first. The header names the
tensors, each with its dtype, its shape and the part of the data that it takes, and has
texts under ``__metadata__``. A reader takes nothing that it says without a check.

Knows files; knows no leaf.
"""

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nettrim_jax.files.dtypes import SIZES
from nettrim_jax.results import FileError

LIMIT = 2**23  # bytes of a header
PIECES = 2**18  # of which a header is made at most, for each takes memory
BEGIN = b'{"__metadata__":{"sha256":"'  # then 64 digits, of the header with zeros there
DIGITS = 64
_FIELDS = {"dtype", "shape", "data_offsets"}
_HEX = re.compile(rb"[0-9a-f]{64}")


class Tensor(NamedTuple):
    """A tensor of a file."""

    dtype: str  # a code of the layout
    shape: tuple[int, ...]
    begin: int  # its bytes, from the beginning of the data
    end: int


class Header(NamedTuple):
    """What a header says."""

    texts: Mapping[str, str]  # of the metadata
    tensors: Mapping[str, Tensor]
    start: int  # where the data begin in the file


def digest_of(length: bytes, header: bytes) -> bytes:
    """The digits of a header's SHA-256, taken with zeros in their place."""
    at = len(BEGIN)
    zeros = header[:at] + b"0" * DIGITS + header[at + DIGITS :]
    return hashlib.sha256(length + zeros).hexdigest().encode()


def header_of(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bytes:
    """The header of a file, with its length in front.

    Raises:
      FileError: it would be too long to be read.
    """
    said: dict[str, Any] = {"__metadata__": {"sha256": "0" * DIGITS, **texts}}
    for name, one in tensors.items():
        said[name] = {
            "dtype": one.dtype,
            "shape": one.shape,
            "data_offsets": [one.begin, one.end],
        }
    header = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    pieces = _pieces(header)
    if pieces > PIECES:
        raise FileError(
            f"save: {len(tensors)} tensors need a header of {pieces} pieces, that "
            f"is commas and brackets, and {PIECES} is the limit; stack leaves, or save "
            "parts of the tree to files of their own"
        )
    if len(header) > LIMIT:
        raise FileError(
            f"save: {len(tensors)} tensors need a header of {len(header)} bytes, and "
            f"{LIMIT} is the limit; stack leaves, or save parts of the tree to files "
            "of their own"
        )
    length = len(header).to_bytes(8, "little")
    at = len(BEGIN)
    digits = digest_of(length, header)
    return length + header[:at] + digits + header[at + DIGITS :]


def shortened(text: str, most: int = 600) -> str:
    """A text with its middle left out if it is long, as what a file says may be."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def _pieces(header: bytes) -> int:
    return sum(header.count(mark) for mark in (b",", b"[", b"{"))


def take(file: io.FileIO, count: int) -> bytearray:
    """So many bytes from where a file stands; fewer only if it ends before.

    One read alone may stop early: after 2 GiB, or on a file system of a network.
    """
    out, at = bytearray(count), 0
    with memoryview(out) as view:
        while at < count and (got := file.readinto(view[at:])):
            at += got
    del out[at:]
    return out


def read_header(file: io.FileIO, name: str) -> Header:
    """The header of a file, checked.

    Raises:
      FileError: it is none, or not as the writer has left it.
    """
    size = os.fstat(file.fileno()).st_size
    length = bytes(take(file, 8))
    count = int.from_bytes(length, "little")
    if len(length) < 8 or count > size - 8:
        raise FileError(
            f"{name}: a header of {count} bytes does not fit into {size} bytes; "
            "expected a whole file that nettrim_jax.save has written"
        )
    if count > LIMIT:
        raise FileError(f"{name}: a header of {count} bytes; at most {LIMIT} are read")
    header = bytes(take(file, count))
    at = len(BEGIN)
    digits = header[at : at + DIGITS]
    if not header.startswith(BEGIN) or not _HEX.fullmatch(digits):
        raise FileError(
            f"{name}: expected a file that nettrim_jax.save has written; one of "
            "safetensors alone is read by safetensors"
        )
    if digest_of(length, header) != digits:
        raise FileError(f"{name}: the header is damaged: its SHA-256 is another one")
    if _pieces(header) > PIECES:
        raise FileError(f"{name}: a header of more than {PIECES} pieces")
    texts, tensors = _parsed(name, header)
    _require_whole(name, tensors, size - 8 - count)
    return Header(texts, tensors, 8 + count)


def _parsed(name: str, header: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        said = dict(pairs)
        if len(said) < len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise FileError(f"{name}: {key!r} is there twice in the header")
                seen.add(key)
        return said

    def refuse(text: str) -> Any:
        raise FileError(f"{name}: the header has the number {text[:20]}")

    try:
        said = json.loads(
            header.decode("utf-8"),
            object_pairs_hook=once,
            parse_float=refuse,
            parse_constant=refuse,
        )
    except FileError:
        raise
    except (ValueError, RecursionError) as error:
        raise FileError(f"{name}: the header is no JSON ({error})") from None
    texts = said.pop("__metadata__")
    if not isinstance(texts, dict) or not all(
        isinstance(text, str) for text in texts.values()
    ):
        raise FileError(f"{name}: expected texts under __metadata__")
    return texts, {key: _tensor(name, key, one) for key, one in said.items()}


def _tensor(name: str, key: str, said: Any) -> Tensor:
    if not isinstance(said, dict) or set(said) != _FIELDS:
        raise FileError(f"{name}: {key}: expected {', '.join(sorted(_FIELDS))}")
    shape, offsets = said["shape"], said["data_offsets"]
    if said["dtype"] not in SIZES or not (_numbers(shape) and _numbers(offsets)):
        raise FileError(
            f"{name}: {key}: expected a dtype of safetensors, a shape and two offsets"
        )
    if len(offsets) != 2 or len(shape) > 64:
        raise FileError(f"{name}: {key}: expected two offsets and at most 64 axes")
    tensor = Tensor(said["dtype"], tuple(shape), *offsets)
    bytes_ = math.prod(shape) * SIZES[tensor.dtype]
    if tensor.end - tensor.begin != bytes_:
        raise FileError(
            f"{name}: {key}: {tensor.dtype} {shape} has {bytes_} bytes, and its "
            f"offsets {offsets} say {tensor.end - tensor.begin}"
        )
    return tensor


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(n) is int and 0 <= n < 2**63 for n in value
    )


def _require_whole(name: str, tensors: Mapping[str, Tensor], size: int) -> None:
    """Raises FileError unless the tensors follow each other and take all data."""
    at = 0
    for key, one in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if one.begin != at:
            what = "overlaps another one" if one.begin < at else "leaves a gap"
            raise FileError(f"{name}: {key}: begins at {one.begin} and {what}")
        at = one.end
    if at != size:
        raise FileError(f"{name}: {size} bytes of data, and the header says {at}")


def ordered(names: Sequence[str], dtypes: Sequence[str]) -> list[str]:
    """Names of tensors in the order in which all of them are aligned."""
    both = zip(names, dtypes, strict=True)
    return [name for name, dtype in sorted(both, key=lambda one: -SIZES[one[1]])]
