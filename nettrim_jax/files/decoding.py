"""A file's leaves: what its header says of them, and their values.

Nothing is taken from a file without a check, and no more memory than what the header's
digests allow: a leaf has one for each MiB of its values.

Knows files; knows no tree.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import stat
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nettrim_jax.files import coders, layout, leaves, masks, values
from nettrim_jax.files.dtypes import CODES, DTYPES, valid
from nettrim_jax.files.layout import Tensor
from nettrim_jax.files.leaves import CHUNK, DIGEST, StoredLeaf
from nettrim_jax.results import FileError
from nettrim_jax.typing import LeafPath

FORMAT, VERSION = "nettrim_jax", "1"
LEAF = "leaf:"  # in front of a leaf's path, where the header speaks of it
_TEXTS = {"sha256", "format", "version"}
Path = str | os.PathLike[str]


class Reader:
    """A file that is open, with its header read.

    Attributes:
      name: of the file, as messages have it.
      size: its bytes.
      leaves: its leaves, by path.
    """

    def __init__(self, file: io.FileIO, name: str):
        self.name, self._file = name, file
        self.size = os.fstat(file.fileno()).st_size
        header = layout.read_header(file, name)
        self._start, self._tensors = header.start, header.tensors
        texts = header.texts
        if texts.get("format") != FORMAT:
            raise FileError(
                f"{name}: expected the format {FORMAT!r}, got {texts.get('format')!r}"
            )
        if texts.get("version") != VERSION:
            raise FileError(
                f"{name}: version {texts.get('version')!r}, and this library reads "
                f"{VERSION!r}; a newer one may read it"
            )
        self.leaves: dict[LeafPath, StoredLeaf] = {}
        owned = set()
        for key, text in texts.items():
            if key.startswith(LEAF):
                leaf = self._described(key.removeprefix(LEAF), text)
                self.leaves[leaf.path] = leaf
                owned |= {part.tensor for part in leaf.tensors().values()}
                owned |= set() if leaf.parts else {leaf.path}
            elif key not in _TEXTS:
                raise FileError(f"{name}: {key!r} is no text that is known")
        strange = sorted(header.tensors.keys() - owned)
        if strange:
            raise FileError(f"{name}: {strange[0]}: a tensor that belongs to no leaf")

    def _described(self, path: LeafPath, text: str) -> StoredLeaf:
        with self._of(path):
            leaf = leaves.read(path, text)
            if not leaf.parts:
                found = [self._tensor(path)]
                code = CODES.get(leaf.dtype)
                wanted = code or "U8", leaf.shape if code else (leaf.raw_bytes,)
                if tuple(found[0][:2]) != wanted:
                    raise ValueError(
                        f"{leaf.dtype} {list(leaf.shape)}, and its tensor is "
                        f"{found[0].dtype} {list(found[0].shape)}"
                    )
            else:
                parts = leaf.tensors().values()
                found = [self._tensor(part.tensor) for part in parts]
                for one, part in zip(found, parts, strict=True):
                    if one.dtype != "U8" or one.end - one.begin > part.most:
                        raise ValueError(
                            f"{part.tensor} has {one.end - one.begin} bytes, and "
                            f"at most {part.most} fit its words"
                        )
            taken = sum(one.end - one.begin for one in found)
            return dataclasses.replace(leaf, stored_bytes=taken)

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise ValueError(f"there is no tensor {name!r}")
        return self._tensors[name]

    @contextlib.contextmanager
    def _of(self, path: LeafPath) -> Iterator[None]:
        """Says of which leaf an error is."""
        try:
            yield
        except FileError:
            raise
        except ValueError as error:
            raise FileError(f"{self.name}: {path}: {error}") from None

    def _read(self, begin: int, count: int) -> bytearray:
        self._file.seek(self._start + begin)
        data = layout.take(self._file, count)
        if len(data) != count:
            raise ValueError(f"the file ends, {count - len(data)} bytes too early")
        return data

    def array(self, path: LeafPath) -> np.ndarray:
        """The values of a leaf, checked."""
        leaf = self.leaves[path]
        with self._of(path):
            if leaf.parts:
                bits = self._decoded(leaf)
                _require(leaf, bits.view(np.uint8).data)
            else:
                bits = np.frombuffer(
                    self._checked(leaf, 0, leaf.raw_bytes), f"<u{leaf.width}"
                )
            array = bits.view(DTYPES[leaf.dtype]).reshape(leaf.shape)
            mask = bits != 0
            mask = mask.reshape(-1, 2).any(1) if leaf.view != leaf.shape else mask
            if int(np.count_nonzero(mask)) != leaf.nonzeros:
                raise ValueError(f"not {leaf.nonzeros} of its entries are left")
            if not valid(array):
                raise ValueError(f"it has bits that no {leaf.dtype} has")
            return array

    def part(self, path: LeafPath, index: Sequence[slice]) -> np.ndarray:
        """Some entries of a leaf, of a plain tensor without reading other rows.

        Rows are read in whole chunks, which have the digests.

        Args:
          path: of the leaf.
          index: a slice for each axis, in steps of one.
        """
        leaf = self.leaves[path]
        if leaf.parts or not leaf.shape:
            return self.array(path)[tuple(index)]
        first, *others = index
        begin, end, _ = first.indices(leaf.shape[0])
        row = leaf.raw_bytes // max(leaf.shape[0], 1)  # bytes
        some = max(CHUNK // max(row, 1), 1)  # rows at a time
        dtype = DTYPES[leaf.dtype]
        sizes = [
            len(range(*s.indices(d))) for s, d in zip(index, leaf.shape, strict=True)
        ]
        out = np.empty(sizes, dtype)
        with self._of(path):
            for k in range(begin, end, some):
                upto = min(k + some, end)
                rows = np.frombuffer(self._checked(leaf, k * row, upto * row), dtype)
                rows = rows.reshape(upto - k, *leaf.shape[1:])
                out[k - begin : upto - begin] = rows[(slice(None), *others)]
            if not valid(out):
                raise ValueError(f"it has bits that no {leaf.dtype} has")
        return out

    def _checked(self, leaf: StoredLeaf, begin: int, end: int) -> bytearray:
        """Bytes of a plain tensor, after those of whole chunks were checked."""
        tensor = self._tensors[leaf.path]
        out = bytearray(end - begin)
        first = begin // CHUNK
        for k in range(first, max(-(-end // CHUNK), first + 1)):
            low, high = k * CHUNK, min((k + 1) * CHUNK, leaf.raw_bytes)
            data = self._read(tensor.begin + low, high - low)
            _require_chunk(leaf, k, data)
            cut = data[max(begin - low, 0) : max(end - low, 0)]
            at = max(low - begin, 0)
            out[at : at + len(cut)] = cut
        return out

    def _decoded(self, leaf: StoredLeaf) -> np.ndarray:
        """The bit patterns of an encoded leaf."""
        stored = {}
        for name, part in leaf.tensors().items():
            tensor = self._tensors[part.tensor]
            stored[name] = self._read(tensor.begin, tensor.end - tensor.begin)
        shape = masks.matrix_of(leaf.view)
        mask = np.ones(shape[0] * shape[1], bool)
        if "mask" in leaf.parts:
            form, _, coder = leaf.parts["mask"].partition("/")
            size = masks.size_of(form, shape)
            mask = masks.decode(form, coders.decode(coder, stored["mask"], size), shape)
        count = int(np.count_nonzero(mask))
        kept = self._kept(leaf, stored, mask, count)
        out = np.zeros(len(mask), f"<u{leaf.width}")
        out[mask] = kept
        return out

    def _kept(
        self,
        leaf: StoredLeaf,
        stored: Mapping[str, bytes],
        mask: np.ndarray,
        count: int,
    ) -> np.ndarray:
        """The values of the entries that are stored."""
        parts = leaf.parts
        if "values" in parts:
            return values.decode_planes(
                parts["values"], stored["values"], leaf.width, count
            )
        if "codes" in parts:
            form, _, coder = parts["codes"].partition("/")
            size = values.read_book(form, leaf.view)[2]
            codes = coders.decode(coder, stored["codes"], count)
            if len(stored["book"]) != size * leaf.width:
                raise ValueError(f"its book has {len(stored['book'])} bytes")
            book = np.frombuffer(stored["book"], f"<u{leaf.width}")
            return values.look_up(form, codes, book, leaf.view, mask)
        if count:
            raise ValueError(f"{count} entries are stored, and no values")
        return np.zeros(0, f"<u{leaf.width}")


def _require(leaf: StoredLeaf, data: memoryview) -> None:
    """Raises ValueError unless all chunks have their digests."""
    for k in range(leaves.chunks(len(data))):
        _require_chunk(leaf, k, data[k * CHUNK : (k + 1) * CHUNK])


def _require_chunk(leaf: StoredLeaf, k: int, data: bytearray | memoryview) -> None:
    wanted = leaf.digests[k * DIGEST : (k + 1) * DIGEST]
    if hashlib.sha256(data).digest() != wanted:
        raise ValueError("its values are damaged: their SHA-256 is another one")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """A file to read.

    Raises:
      FileError: it is no file, or none that ``save`` has written.
    """
    name = os.fsdecode(path)
    if not stat.S_ISREG(os.stat(name).st_mode):  # a pipe would never end
        raise FileError(f"{name}: expected a file, and it is none")
    with open(name, "rb", buffering=0) as file:
        try:
            yield Reader(file, name)
        except FileError as error:
            said = str(error).removeprefix(name)
            short = layout.shortened(said)
            if short == said:
                raise
            raise FileError(name + short) from None
