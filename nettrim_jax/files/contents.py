"""``describe``: what a file has, as a record that prints as a table.

Knows the header; reads no values.
"""

import dataclasses
from typing import Any

from nettrim_jax.files.decoding import Path, reading
from nettrim_jax.files.leaves import StoredLeaf
from nettrim_jax.report.tables import fit, grid

_COLUMNS = (
    ("shape", 12),
    ("dtype", 8),
    ("zeros", 6),
    ("as", 18),
    ("bytes", 9),
    ("in file", 9),
    ("ratio", 5),
)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file has; prints as a table.

    Attributes:
      name: of the file.
      leaves: its leaves, in the order of the tree.
      bytes: of the whole file, with its header.
    """

    name: str
    leaves: tuple[StoredLeaf, ...]
    bytes: int

    @property
    def raw_bytes(self) -> int:
        """Bytes of all values, as arrays."""
        return sum(leaf.raw_bytes for leaf in self.leaves)

    @property
    def size(self) -> int:
        """Number of entries."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def nonzeros(self) -> int:
        """Entries that are other than zero."""
        return sum(leaf.nonzeros for leaf in self.leaves)

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than the arrays."""
        return self.raw_bytes / self.bytes

    def __str__(self) -> str:
        rows = [(leaf.path, _cells(leaf)) for leaf in self.leaves]
        zeros = _share(self.size - self.nonzeros, self.size)
        stored = sum(leaf.stored_bytes for leaf in self.leaves)
        total = ["", "", zeros, "", f"{self.raw_bytes}", f"{stored}"]
        rows.append(("all", [*total, _ratio(self.raw_bytes, stored)]))
        return "\n".join(
            [
                *grid(_COLUMNS, rows, "leaf"),
                f"file of {self.bytes:,} bytes, of which {self.bytes - stored:,} are "
                f"its header: {self.ratio:.4g} times smaller than its arrays",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "name": self.name,
            "bytes": self.bytes,
            "raw_bytes": self.raw_bytes,
            "leaves": [
                {
                    "path": leaf.path,
                    "shape": list(leaf.shape),
                    "dtype": leaf.dtype,
                    "encoding": leaf.encoding,
                    "nonzeros": leaf.nonzeros,
                    "raw_bytes": leaf.raw_bytes,
                    "bytes": leaf.stored_bytes,
                }
                for leaf in self.leaves
            ],
        }


def _share(zeros: int, size: int) -> str:
    return f"{100 * zeros / size:.1f}%" if size else "-"


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.4g}" if after else "-"


def _cells(leaf: StoredLeaf) -> list[Any]:
    return [
        fit("x".join(map(str, leaf.shape)) or "scalar", 12, middle=True),
        fit(leaf.dtype, 8, middle=True),
        _share(leaf.size - leaf.nonzeros, leaf.size),
        fit(leaf.encoding, 18),
        f"{leaf.raw_bytes}",
        f"{leaf.stored_bytes}",
        _ratio(leaf.raw_bytes, leaf.stored_bytes),
    ]


def describe(path: Path) -> Contents:
    """Tells what a file has, and how it is stored, without reading any values.

    Args:
      path: a file that :func:`save` has written.

    Returns:
      Its leaves and sizes; ``print`` shows a table.

    Raises:
      FileError: the header is damaged, or ``save`` has not written the file.
      OSError: the file cannot be read.

    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> import nettrim_jax as nt
      >>> kernel = np.zeros((100, 100), np.float32)
      >>> kernel[::10, ::10] = np.arange(100).reshape(10, 10) + 0.5
      >>> file = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
      >>> nt.save(file, {"kernel": kernel, "bias": np.ones(20, np.float32)})
      >>> [(leaf.path, leaf.encoding) for leaf in nt.describe(file).leaves]
      [('bias', 'dense'), ('kernel', 'gaps')]
    """
    with reading(path) as reader:
        return Contents(reader.name, tuple(reader.leaves.values()), reader.size)
