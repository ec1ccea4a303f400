"""``save``: a tree of arrays as a file, which replaces an older one at once.

Knows trees and files.
"""

import contextlib
import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import _trees
from nettrim_jax.files import encoding, layout
from nettrim_jax.files.decoding import FORMAT, LEAF, VERSION, Path
from nettrim_jax.files.dtypes import DTYPES
from nettrim_jax.files.layout import Tensor
from nettrim_jax.files.leaves import PARTS, ROOT, StoredLeaf
from nettrim_jax.results import HERE, ParamsError
from nettrim_jax.typing import LeafPath, Params

_READABLE = ("__array__", "__array_interface__", "__array_struct__")  # by NumPy


def save(
    path: Path,
    params: Params,
    *,
    encodings: Collection[str] = encoding.NAMES,
) -> None:
    """Writes arrays to a file, with every leaf in the form that takes least room.

    What :func:`load` gives back has the same bits. The file has the layout of
    safetensors; leaves that nothing makes smaller are plain tensors in it. An older
    file is replaced at once, when the new one is on the disk: at any moment there is
    the old one or the new one, whole. What is to be written lies in a file without a
    name in the same folder before, so the disk needs room for two new files beside
    the older one.

    Leaves are encoded one after another. Beside the tree itself, that takes memory of 3
    to 12 times a leaf of float32, as measured with a million entries, 35 times one of
    int8, and less than once a leaf with ``encodings=()``.

    Args:
      path: the file. If it is a symbolic link, the link is replaced.
      params: a pytree of arrays; or what :func:`prune`, :func:`refit`, :func:`share`,
        :func:`shrink`, :func:`trim` or :func:`recover` returned, of which it is the
        params. Leaves that are no arrays are left out.
      encodings: what to choose from beside plain tensors: where values other than zero
        are, by ``"bitmask"``, ``"gaps"`` between them, ``"nm"`` (of every m entries n)
        or ``"blocks"``; the values as ``"codes"`` of a codebook, if there are at most
        256, or 256 for each slice along an axis; bytes by ``"huffman"``, ``"zlib"``
        or ``"lzma"``. Deep Compression's are ``("gaps", "codes", "huffman")``.

    Raises:
      ParamsError: there is no array, or one that cannot be written: of another dtype,
        masked, or with a shape and no values; or ``encodings`` is not of these names.
      FileError: the header would be too long.
      OSError: the file cannot be written.

    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> import nettrim_jax as nt
      >>> kernel = np.zeros((100, 100), np.float32)
      >>> kernel[::10, ::10] = 0.5
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> nt.save(folder / "model.safetensors", {"kernel": kernel})
      >>> (folder / "model.safetensors").stat().st_size < kernel.nbytes / 50
      True
    """
    if (
        isinstance(encodings, str)
        or not isinstance(encodings, Collection)
        or not all(isinstance(n, str) and n in encoding.NAMES for n in encodings)
    ):
        raise ParamsError(
            f"save: encodings={encodings!r}; expected some of {encoding.NAMES}, "
            "in a tuple"
        )
    leaves = list(leaves_of(params))
    if not leaves:
        raise ParamsError(
            f"save: {type(params).__name__} has no array; expected a pytree of arrays"
        )
    _require_names([leaf for leaf, _ in leaves])
    target = os.fsdecode(path)
    folder = os.path.dirname(target) or "."
    with tempfile.TemporaryFile(dir=folder) as spool:
        written: list[StoredLeaf] = []
        tensors: dict[str, Tensor] = {}
        for leaf, given in leaves:
            one, pieces = encoding.encode(leaf, values_of(leaf, given), encodings)
            written.append(one)
            for name, piece in pieces.items():
                begin = spool.tell()
                spool.write(piece.data)
                tensors[name] = Tensor(piece.dtype, piece.shape, begin, spool.tell())
        header, order = header_of(written, tensors)
        with _replacing(target, folder) as file:
            file.write(header)
            for name in order:
                _copy(spool, file, tensors[name])


def _params_of(given: Any) -> Params:
    """The params of what this library returned, or what was given."""
    ours = type(given).__module__.split(".")[0] == HERE
    return given.params if ours and hasattr(given, "params") else given


def header_of(
    leaves: Iterable[StoredLeaf], tensors: Mapping[str, Tensor]
) -> tuple[bytes, list[str]]:
    """The header of a file, and the order in which its tensors follow."""
    texts = {"format": FORMAT, "version": VERSION}
    texts |= {LEAF + leaf.path: leaf.text() for leaf in leaves}
    order = layout.ordered(list(tensors), [one.dtype for one in tensors.values()])
    return layout.header_of(texts, _moved(tensors, order)), order


def leaves_of(given: Any) -> Iterator[tuple[StoredLeaf, Any]]:
    """Every array of what is saved, with what is known of it without its values."""
    params = _params_of(given)
    _trees.require_alive("save", params, ParamsError)
    boxes = iter(_trees.boxes_of(params))
    for keys, given in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not _trees.is_array(given):
            continue
        path, box = _trees.path_of(keys) or ROOT, next(boxes)
        _require_values(path, given)
        prng, shape = None, tuple(given.shape)
        if isinstance(given, jax.Array) and jnp.issubdtype(
            given.dtype, jax.dtypes.prng_key
        ):
            prng, given = str(jax.random.key_impl(given)), jax.random.key_data(given)
            shape = tuple(given.shape)
        try:
            name = np.dtype(given.dtype).name
        except TypeError:  # of another framework
            name = str(given.dtype)
        if name not in DTYPES or not shape == tuple(np.shape(given)):
            raise ParamsError(
                f"save: {path} is {name}; expected one of {', '.join(DTYPES)}, in "
                "an array of NumPy or JAX"
            )
        parts = tuple(_trees.path_of([key]) for key in keys)
        boxed = bool(parts) and box != path and box == "/".join(parts[:-1])
        yield StoredLeaf(path, parts, boxed, shape, name, 0, 0, {}, prng, b""), given


def _require_values(path: LeafPath, given: Any) -> None:
    """Raises ParamsError unless all values of an array can be read."""
    if not _trees.known(given):
        raise ParamsError(
            f"save: {path} is being traced; save outside of the function that JAX "
            "traces"
        )
    if isinstance(given, jax.Array) and not given.is_fully_addressable:
        raise ParamsError(
            f"save: {path} has parts on devices of other processes; gather it "
            "first, as by jax.experimental.multihost_utils.process_allgather"
        )
    if not isinstance(given, jax.Array) and not any(
        hasattr(given, name) for name in _READABLE
    ):
        raise ParamsError(
            f"save: {path} is a {type(given).__name__}, which has a shape and no "
            "values; give an array"
        )
    if isinstance(given, np.ma.MaskedArray):
        raise ParamsError(
            f"save: {path} is a masked array, and a file has no mask; give "
            ".filled(value), or the values and the mask as two leaves"
        )


def _require_names(leaves: Sequence[StoredLeaf]) -> None:
    """Raises ParamsError unless every tensor has a name of its own."""
    taken = {"__metadata__"}
    for leaf in leaves:
        names = [leaf.path, *(f"{leaf.path}:{part}" for part in PARTS)]
        if taken & set(names):
            raise ParamsError(
                f"save: {leaf.path!r} is the name of another leaf, too, or of what "
                "belongs to it; rename one of them"
            )
        taken |= set(names)
        if leaf.path.encode("utf-8", "replace").decode() != leaf.path:
            raise ParamsError(f"save: {leaf.path!r} is no text of Unicode")


def values_of(leaf: StoredLeaf, given: Any) -> np.ndarray:
    """An array's values as NumPy has them, with the lowest byte first."""
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise ParamsError(
            f"save: {leaf.path} is a {type(given).__name__}, of which NumPy makes no "
            f"array ({error})"
        ) from error
    if (array.dtype.name, array.shape) != (leaf.dtype, leaf.shape):
        raise ParamsError(
            f"save: {leaf.path} says that it is {leaf.dtype} {list(leaf.shape)}, and "
            f"NumPy makes {array.dtype.name} {list(array.shape)} of it"
        )
    # a file has the lowest byte first
    return array.astype(DTYPES[leaf.dtype], copy=False)


def _moved(tensors: Mapping[str, Tensor], order: Sequence[str]) -> dict[str, Tensor]:
    """Where the tensors lie if they follow each other in some order."""
    out, at = {}, 0
    for name in order:
        one = tensors[name]
        size = one.end - one.begin
        out[name] = one._replace(begin=at, end=at + size)
        at += size
    return out


def _copy(spool: BinaryIO, file: BinaryIO, one: Tensor) -> None:
    spool.seek(one.begin)
    left = one.end - one.begin
    while left:
        data = spool.read(min(left, 2**20))
        file.write(data)
        left -= len(data)


@contextlib.contextmanager
def _replacing(target: str, folder: str) -> Iterator[BinaryIO]:
    """A file beside the target, which takes its place if nothing is raised."""
    # its name is as long for every target, since a longer one may be too long
    beside = os.path.join(folder, f"nettrim-{secrets.token_hex(8)}.tmp")
    mode = None
    with contextlib.suppress(FileNotFoundError):
        mode = stat.S_IMODE(os.stat(target).st_mode)

    def opener(name: str, flags: int) -> int:
        # no more may be read at any moment than of the older file
        return os.open(name, flags, 0o666 if mode is None else mode & 0o666)

    file = open(beside, "xb", opener=opener)  # noqa: SIM115
    try:
        with file:
            if mode is not None:
                os.chmod(beside, mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(beside)
        raise
    _sync(folder)


def _sync(folder: str) -> None:
    """Brings a new name to the disk, where the file system can."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one may write into it, and not read it
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
