"""What a file says of a leaf, in the words of its header.

Knows texts; reads no data.
"""

import base64
import binascii
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from nettrim_jax.files import coders, masks, values
from nettrim_jax.files.dtypes import DTYPES, UNKNOWN
from nettrim_jax.typing import LeafPath

CHUNK = 2**20  # bytes of a leaf that one digest is of
DIGEST = 32  # bytes of a digest
WORDS = ("mask", "values", "codes")  # of an encoded leaf
PARTS = (*WORDS, "book")  # its tensors; a word of codes is that of their book, too
ROOT = "params"  # the path of an array that has no name
_SHAPE = re.compile(r"\[((?:0|[1-9]\d{0,18})(?:,(?:0|[1-9]\d{0,18}))*)?\]", re.ASCII)
_NUMBER = re.compile(r"0|[1-9]\d{0,18}", re.ASCII)
_KNOWN = {"left", "sha256", "keys", "boxed", "prng", *WORDS}
_CODERS = re.compile(coders.WORD)


class Part(NamedTuple):
    """A tensor of an encoded leaf."""

    tensor: str  # its name
    most: int  # its bytes at most


@dataclasses.dataclass(frozen=True)
class StoredLeaf:
    """A leaf of a file.

    Attributes:
      path: its path.
      keys: the keys on the way to it, of which the path is made.
      boxed: whether the last of them is that of a box, such as a variable of Flax.
      shape: its shape.
      dtype: the name of its dtype.
      nonzeros: entries that are other than zero, in any bit.
      stored_bytes: what it takes in the file.
      parts: how it is stored, by tensor; empty if it is a plain one.
      prng: the implementation of random keys, if it is an array of keys.
      digests: the SHA-256 of each MiB of its values.
    """

    path: LeafPath
    keys: tuple[str, ...]
    boxed: bool
    shape: tuple[int, ...]
    dtype: str
    nonzeros: int
    stored_bytes: int
    parts: Mapping[str, str]
    prng: str | None
    digests: bytes = dataclasses.field(repr=False)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def raw_bytes(self) -> int:
        """Bytes of its values."""
        return self.size * DTYPES[self.dtype].itemsize

    @property
    def sparsity(self) -> float:
        """Share of zeros, from 0 to 1; 0 if it is empty."""
        return 1 - self.nonzeros / self.size if self.size else 0.0

    @property
    def encoding(self) -> str:
        """``"dense"``, or what says where its values are, and what they are."""
        if not self.parts:
            return "dense"
        kind, *n = self.parts.get("mask", "").split("/")[0].split(",")
        if kind == "nm":
            kind = f"{n[0]}:{n[1]}"
        elif kind == "bits":
            kind = "bitmask" if n[:2] == ["1", "1"] else f"blocks {n[0]}x{n[1]}"
        book = self.parts.get("codes", "").split("/")[0].split(",")
        kinds = [kind] if kind else []
        if book[0]:
            kinds.append(f"{book[0]} codes" + " each" * (len(book) > 1))
        return " + ".join(kinds) or "planes"

    @property
    def box(self) -> LeafPath:
        """The path of its box, or its own if it has none."""
        return "/".join(self.keys[:-1]) if self.boxed else self.path

    @property
    def view(self) -> tuple[int, ...]:
        """The shape of its bit patterns, of which an entry of 16 bytes has two."""
        return (*self.shape, 2) if DTYPES[self.dtype].itemsize == 16 else self.shape

    @property
    def width(self) -> int:
        """Bytes of a bit pattern."""
        return min(DTYPES[self.dtype].itemsize, 8)

    def text(self) -> str:
        """What the header says of it."""
        shape = ",".join(map(str, self.shape))
        words = [self.dtype, f"[{shape}]", f"left={self.nonzeros}"]
        words += [f"{name}={word}" for name, word in self.parts.items()]
        if self.keys != tuple(self.path.split("/")):
            words.append("keys=" + ",".join(str(len(key)) for key in self.keys))
        words += ["boxed"] if self.boxed else []
        words += [f"prng={self.prng}"] if self.prng else []
        return " ".join([*words, f"sha256={base64.b64encode(self.digests).decode()}"])

    def tensors(self) -> dict[str, Part]:
        """The tensors of an encoded leaf; none of a plain one.

        Raises:
          ValueError: the parts do not fit each other or the shape.
        """
        if {"values", "codes"} <= self.parts.keys():
            raise ValueError("it has both values and codes")
        count, most = math.prod(self.view), {}
        for name, word in self.parts.items():
            form, _, coder = word.partition("/")
            if name == "values":
                most[name] = values.most_of_planes(word, self.width, count)
                continue
            if not _CODERS.fullmatch(coder):
                raise ValueError(f"there is no coder {coder!r}")
            size = count
            if name == "mask":
                size = masks.size_of(form, masks.matrix_of(self.view))
            else:
                most["book"] = values.read_book(form, self.view)[2] * self.width
            most[name] = coders.most(coder, size)
        return {
            name: Part(f"{self.path}:{name}", most[name])
            for name in PARTS
            if name in most
        }


def chunks(count: int) -> int:
    """The number of digests for so many bytes."""
    return max(1, -(-count // CHUNK))


def read(path: LeafPath, text: str) -> StoredLeaf:
    """A leaf from what the header says of it, without what it takes.

    Raises:
      ValueError: the header says no leaf.
    """
    dtype, shape, *rest = [*text.split(" "), ""]
    if dtype in UNKNOWN:
        raise ValueError(f"this ml_dtypes knows no {dtype}; update ml_dtypes and jax")
    if len(rest) < 2 or dtype not in DTYPES or not _SHAPE.fullmatch(shape):
        raise ValueError(f"expected a dtype, a shape and words, got {text[:80]!r}")
    numbers = tuple(int(n) for n in shape[1:-1].split(",")) if shape != "[]" else ()
    words = {}
    for one in rest[:-1]:
        name, _, word = one.partition("=")
        if name not in _KNOWN or name in words:
            raise ValueError(f"{name!r} is unknown, or is there twice")
        words[name] = word
    if len(numbers) > 64 or not _NUMBER.fullmatch(words.get("left", "")):
        raise ValueError(f"expected the number of entries left, got {text[:80]!r}")
    leaf = StoredLeaf(
        path=path,
        keys=_keys(path, words.get("keys")),
        boxed="boxed" in words,
        shape=numbers,
        dtype=dtype,
        nonzeros=int(words["left"]),
        stored_bytes=0,
        parts={name: words[name] for name in WORDS if name in words},
        prng=words.get("prng"),
        digests=_digests(words.get("sha256", "")),
    )
    wanted = chunks(leaf.raw_bytes)
    if len(leaf.digests) != wanted * DIGEST:
        raise ValueError(
            f"shape {list(numbers)} of {dtype} needs {wanted} digests, and it has "
            f"{len(leaf.digests) // DIGEST}"
        )
    if leaf.nonzeros > leaf.size or (leaf.boxed and not leaf.keys):
        raise ValueError(f"{leaf.nonzeros} of {leaf.size} entries are left")
    leaf.tensors()
    return leaf


def _keys(path: LeafPath, lengths: str | None) -> tuple[str, ...]:
    if lengths is None:
        return tuple(path.split("/"))
    if not lengths:
        return ()
    if not all(_NUMBER.fullmatch(n) for n in lengths.split(",")):
        raise ValueError(f"keys={lengths!r} are no lengths")
    if lengths == "0" and path == ROOT:
        return ("",)
    out, at = [], 0
    for n in map(int, lengths.split(",")):
        out.append(path[at : at + n])
        at += n + 1
    if "/".join(out) != path:
        raise ValueError(f"keys={lengths!r} are not those of its path")
    return tuple(out)


def _digests(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("its digests are no base64") from None
