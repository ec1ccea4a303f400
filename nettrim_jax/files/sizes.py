"""How large a file would be, without one.

Knows trees and the writer.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from nettrim_jax.files import encoding
from nettrim_jax.files.layout import Tensor
from nettrim_jax.files.leaves import StoredLeaf
from nettrim_jax.files.writing import header_of, leaves_of, values_of


class _Size(NamedTuple):
    """A leaf as the header describes it, and its tensors without their bytes."""

    leaf: StoredLeaf
    tensors: dict[str, Tensor]


class Sizes:
    """The bytes of the files of a tree, and of trees with other values in some leaves.

    Args:
      params: as for :func:`nettrim_jax.save`.

    Raises:
      ParamsError: as for :func:`nettrim_jax.save`.
    """

    def __init__(self, params: Any):
        self._given = [_size(leaf, given) for leaf, given in leaves_of(params)]

    def __call__(self, changed: Mapping[int, Any]) -> int:
        """The bytes of the whole file that ``save`` would write.

        Args:
          changed: arrays in the place of those of the tree, by position.
        """
        every = list(self._given)
        for k, array in changed.items():
            every[k] = _size(every[k].leaf, array)
        tensors = {name: one for size in every for name, one in size.tensors.items()}
        header, _ = header_of([size.leaf for size in every], tensors)
        return len(header) + sum(one.end - one.begin for one in tensors.values())


def _size(leaf: StoredLeaf, given: Any) -> _Size:
    stored, pieces = encoding.encode(leaf, values_of(leaf, given), encoding.NAMES)
    tensors = {
        name: Tensor(one.dtype, one.shape, 0, len(one.data))
        for name, one in pieces.items()
    }
    return _Size(stored, tensors)
