"""The leaves of an optimiser's params, and the matrices that patterns act on.

An optimiser may see only some leaves: ``optax.multi_transform`` hides the others. So
leaves are found by their paths. Knows trees of arrays; knows no solver.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax._trees import boxes_of, is_array, path_of
from nettrim_jax.results import MethodError, ParamsError
from nettrim_jax.typing import Array, LeafPath, Params


def hidden(leaf: Any) -> bool:
    """Whether a leaf stands for one that the optimiser does not see."""
    # optax.MaskedNode, by what it is: a node without children, which is no leaf
    return leaf is None or (isinstance(leaf, tuple) and not leaf)


class Flat(NamedTuple):
    """Params as a list; hidden leaves are in it."""

    leaves: list[Any]
    keys: tuple[Any, ...]  # of the tree
    paths: tuple[LeafPath, ...]
    boxes: tuple[LeafPath, ...]  # of leaves that are arrays; of others their path
    tree: Any

    def like(self, tree: Any) -> list[Any]:
        """The leaves of a tree like the params."""
        return self.tree.flatten_up_to(tree)

    @property
    def key(self) -> tuple:
        """What the choice of matrices depends on."""
        return self.paths, tuple(map(_kind, self.leaves))


def _kind(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype) if is_array(leaf) else None


def flatten(params: Params) -> Flat:
    """The leaves of params, with their paths."""
    found, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=hidden)
    paths = tuple(path_of(keys) or "params" for keys, _ in found)
    leaves = [leaf for _, leaf in found]
    boxed = iter(boxes_of(params))
    boxes = tuple(
        (next(boxed) or path) if is_array(leaf) else path
        for path, leaf in zip(paths, leaves, strict=True)
    )
    return Flat(leaves, tuple(keys for keys, _ in found), paths, boxes, tree)


@dataclasses.dataclass(frozen=True, eq=False)
class Last:
    """A leaf as matrices ``[..., d_in, d_out]`` of its last axes, one layer in all."""

    path: LeafPath
    shape: tuple[int, int, int, int]
    channels: None = None

    def read(self, leaf: Array, *, plain: bool = False) -> Array:
        """The weights in the leaf, in ``shape``."""
        del plain
        return leaf.reshape(self.shape)

    def write(self, leaf: Array, values: Array, *, plain: bool = False) -> Array:
        """The leaf with these weights."""
        del plain
        return values.reshape(leaf.shape).astype(leaf.dtype)


class Place(NamedTuple):
    """The matrices of a leaf."""

    leaf: int  # position in the flat params
    matrices: Any  # read, write, path, shape and channels, as of ``Last``


def places(flat: Flat, layers: Any, caller: str) -> list[Place]:
    """The matrices of all leaves.

    Args:
      flat: the params.
      layers: what :func:`nettrim_jax.sites` found; None takes every leaf of two or more
        dimensions by its last two.
      caller: the function that the user called.

    Raises:
      MethodError: ``layers`` is something else.
      ParamsError: a layer's leaf is not there, or has another shape.
    """
    if layers is None:
        return [
            Place(at, Last(path, _last(leaf.shape)))
            for at, (leaf, path) in enumerate(zip(flat.leaves, flat.paths, strict=True))
            if is_array(leaf)
            and len(leaf.shape) > 1
            and jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
    check_layers(layers, caller)
    names = {path: at for at, path in enumerate(flat.paths)}
    for at, box in enumerate(flat.boxes):
        names.setdefault(box, at)
    out = []
    for one in layers.matrices:
        at = names.get(one.path, names.get(one.box))
        if at is None:
            raise ParamsError(
                f"{caller}: {one.path}: a layer of layers= that is none of the "
                f"optimiser's params, which are {', '.join(flat.paths)}; list the "
                "layers of these params, as by nettrim_jax.sites(params, apply_fn, "
                "batch) with an apply_fn that takes them"
            )
        if hidden(flat.leaves[at]):
            continue
        if not one.fits(flat.leaves[at]):
            raise ParamsError(
                f"{caller}: {one.path}: expected the shape {list(one.leaf)} that it "
                f"had in nettrim_jax.sites, got {list(flat.leaves[at].shape)}"
            )
        out.append(Place(at, one))
    return out


def check_layers(layers: Any, caller: str) -> None:
    """Raises MethodError unless it is a listing with layers."""
    found = getattr(layers, "matrices", None)
    if not isinstance(found, tuple):
        raise MethodError(
            f"{caller}(layers={layers!r}): expected layers=nettrim_jax.sites(params, "
            "apply_fn, batch), or None for all leaves of two or more dimensions"
        )
    if not found and layers.sites:
        raise MethodError(
            f"{caller}(layers=...): a listing that was read back from plain data says "
            "nothing of where the layers lie; call nettrim_jax.sites again"
        )


def _last(shape: Sequence[int]) -> tuple[int, int, int, int]:
    lanes = 1
    for size in shape[:-2]:
        lanes *= size
    return 1, lanes, shape[-2], shape[-1]


def assigned(given: Any, flat: Flat, spots: Sequence[Place], caller: str) -> list[Any]:
    """What each place is given, by ``re.search`` on its paths, first match wins.

    Args:
      given: one value for all, or a mapping from regular expressions to values.
      flat: the params.
      spots: the places.
      caller: the function that the user called.

    Raises:
      MethodError: an expression is wrong or matches no leaf.
    """
    if not isinstance(given, Mapping):
        return [given] * len(spots)
    table = []
    for text, value in given.items():
        try:
            compiled = re.compile(text)
        except (re.error, TypeError) as error:
            raise MethodError(
                f"{caller}: {text!r} is no regular expression ({error})"
            ) from None
        names = (*flat.paths, *flat.boxes)
        if not any(compiled.search(name) for name in names):
            raise MethodError(
                f"{caller}: the regular expression {text!r} matches no leaf; the "
                f"leaves are {', '.join(flat.paths)}"
            )
        table.append((compiled, value))

    def of(at: int) -> Any:
        both = flat.paths[at], flat.boxes[at]
        for compiled, value in table:
            if any(compiled.search(name) for name in both):
                return value
        return None

    return [of(spot.leaf) for spot in spots]
