"""``load``: the arrays of a file, as the leaves of a tree or as a plain dict.

Knows trees; knows no form of a leaf.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import _trees
from nettrim_jax.files.decoding import Path, Reader, reading
from nettrim_jax.files.dtypes import DTYPES
from nettrim_jax.files.layout import shortened
from nettrim_jax.files.leaves import StoredLeaf
from nettrim_jax.results import FileError, ParamsError
from nettrim_jax.typing import LeafPath, Params

# a regular expression for the path, or a function of the leaf
Selector = str | Callable[[StoredLeaf], bool]


def load(
    path: Path, *, like: Params | None = None, include: Selector | None = None
) -> Params:
    """Reads arrays that :func:`save` has written, bit for bit.

    Each leaf is read by itself, and only those asked for. What does not have the
    SHA-256 with which it was saved is an error, never another array.

    Args:
      path: the file.
      like: a tree to put the arrays into: params of the same tree, or what
        ``jax.eval_shape`` gives for them. An array becomes one of the same kind: of
        NumPy; or of JAX, where the given one lies. Of a plain tensor in the file, a
        device that holds some rows, that is a part along the first axis, reads those
        alone, up to whole MiBs, which have the digests; of a part along other axes it
        reads these rows in full. A leaf in another form is read in full. Leaves that
        are no arrays, and leaves that ``include`` leaves out, stay those of ``like``.
      include: a regular expression to find in a leaf's path, or a function of a
        :class:`~nettrim_jax.files.StoredLeaf` that is true, for the leaves to read.

    Returns:
      The tree; without ``like`` a dict of dicts by the keys of the paths, with arrays
      of NumPy, or the array if the params were one.

    Raises:
      FileError: the file is damaged, or not one that ``save`` has written; the message
        says which leaf.
      ParamsError: a leaf of ``like`` is not in the file, or has another shape or dtype
        there; or the file has others; or ``include`` matches none.
      OSError: the file cannot be read.

    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> import nettrim_jax as nt
      >>> file = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
      >>> nt.save(file, {"in": {"kernel": np.eye(3)}, "out": {"kernel": np.ones(2)}})
      >>> nt.load(file, include="out")
      {'out': {'kernel': array([1., 1.])}}
      >>> params = {"in": {"kernel": np.zeros((3, 3))}, "out": {"kernel": np.zeros(2)}}
      >>> float(nt.load(file, like=params)["in"]["kernel"].sum())
      3.0
    """
    with reading(path) as reader:
        wanted = _chosen(reader, include)
        if like is None:
            return _nested(reader, wanted)
        return _filled(reader, wanted, like, everything=include is None)


def _chosen(reader: Reader, include: Selector | None) -> list[LeafPath]:
    """The paths of the leaves to read."""
    if include is None:
        return list(reader.leaves)
    if callable(include):
        found = [path for path, leaf in reader.leaves.items() if include(leaf)]
    else:
        try:
            compiled = re.compile(include)
            compiled.search("")  # which bytes cannot
        except (re.error, TypeError) as error:
            raise ParamsError(
                f"include={include!r}: expected a regular expression or a function of "
                f"a leaf ({error})"
            ) from None
        found = [
            path
            for path, leaf in reader.leaves.items()
            if compiled.search(path) or compiled.search(leaf.box)
        ]
    if not found:
        raise ParamsError(
            f"include={getattr(include, '__name__', repr(include))} matches no leaf; "
            f"the leaves are {_listed(reader.leaves)}"
        )
    return found


def _listed(paths: Iterable[LeafPath]) -> str:
    return shortened(", ".join(paths) or "none")


def _nested(reader: Reader, wanted: list[LeafPath]) -> Any:
    """The leaves as a dict of dicts, or the one that is none of a dict."""
    out: dict[str, Any] = {}
    for path in wanted:
        keys = reader.leaves[path].keys
        if not keys:
            if len(reader.leaves) > 1:
                raise FileError(f"{reader.name}: {path}: a tree is below an array")
            return _given(reader, path)
        place = out
        for key in keys[:-1]:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise FileError(f"{reader.name}: {path}: a tree is below an array")
        if keys[-1] in place:
            raise FileError(f"{reader.name}: {path}: another leaf is at its place")
        place[keys[-1]] = _given(reader, path)
    return out


def _given(reader: Reader, path: LeafPath) -> Any:
    """The array of a leaf, or its random keys."""
    array, prng = reader.array(path), reader.leaves[path].prng
    return array if prng is None else _random_keys(reader, path, array)


def _random_keys(reader: Reader, path: LeafPath, array: Any) -> Any:
    prng = reader.leaves[path].prng
    try:
        return jax.random.wrap_key_data(jax.device_put(array), impl=prng)
    except (ValueError, TypeError) as error:
        raise FileError(
            f"{reader.name}: {path}: no random keys of {prng!r} ({error})"
        ) from None


def _filled(
    reader: Reader, wanted: list[LeafPath], like: Params, everything: bool
) -> Params:
    """A tree like another one, with the leaves of the file."""
    names = {reader.leaves[path].box: path for path in wanted}
    names |= {path: path for path in wanted}
    arrays, paths, boxes = [], _trees.paths_of(like), _trees.boxes_of(like)
    found = set()
    given = [leaf for leaf in jax.tree.leaves(like) if _trees.is_array(leaf)]
    for leaf, path, box in zip(given, paths, boxes, strict=True):
        name = names.get(path, names.get(box))
        if name is None:
            if everything:
                raise ParamsError(
                    f"load: like has {path}, and {reader.name} has no such leaf; it "
                    f"has {_listed(reader.leaves)}; include= reads some"
                )
            arrays.append(leaf)
            continue
        found.add(name)
        arrays.append(_placed(reader, name, path, leaf))
    left = [path for path in wanted if path not in found]
    if left:
        raise ParamsError(
            f"load: {reader.name} has {_listed(left)}, and like has no such leaf; "
            f"it has {_listed(paths)}; include= reads only some leaves"
        )
    return _trees.Filler(like)(arrays)


def _placed(reader: Reader, name: LeafPath, path: LeafPath, like: Any) -> Any:
    """A leaf of the file as an array like another one."""
    leaf = reader.leaves[name]
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key) or leaf.prng:
        keys = _given(reader, name)
        _require_like(path, like, keys.dtype, keys.shape, reader.name)
        where = getattr(like, "sharding", None)
        return keys if where is None else jax.device_put(keys, where)
    dtype = DTYPES[leaf.dtype]
    _require_like(path, like, dtype, leaf.shape, reader.name)
    if isinstance(like, np.ndarray):
        return reader.array(name)
    if isinstance(like, np.generic):
        return reader.array(name)[()]
    out = _on_devices(reader, name, like)
    if out.dtype != dtype:
        raise ParamsError(
            f"load: {path} is {dtype}, which JAX makes {out.dtype}; set "
            "jax_enable_x64, or give NumPy's arrays in like"
        )
    return out


def _on_devices(reader: Reader, name: LeafPath, like: Any) -> jax.Array:
    """A leaf of the file where another one lies."""
    leaf, where = reader.leaves[name], getattr(like, "sharding", None)
    if where is not None and len(where.device_set) > 1:
        read = functools.lru_cache(1)(lambda: reader.array(name))
        whole = bool(leaf.parts)

        def part(index: Any) -> np.ndarray:
            return read()[index] if whole else reader.part(name, index)

        return jax.make_array_from_callback(leaf.shape, where, part)
    array = reader.array(name)
    if where is None or not getattr(like, "committed", True):
        device = None if where is None else next(iter(where.device_set))
        with jax.default_device(device):
            return jax.device_put(array)
    return jax.device_put(array, where)


def _require_like(
    path: LeafPath, like: Any, dtype: Any, shape: tuple[int, ...], name: str
) -> None:
    """Raises ParamsError unless a leaf of like has this shape and dtype."""
    if tuple(like.shape) != tuple(shape) or like.dtype != dtype:
        raise ParamsError(
            f"load: {path} is {dtype} {list(shape)} in {name}, and {like.dtype} "
            f"{list(like.shape)} in like; give params like those that were saved"
        )
