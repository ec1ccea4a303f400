"""Arrays on meshes with explicit axes, and a mesh of the library's own in their place.

Under explicit axes, the default of ``jax.make_mesh``, a sharding is part of an array's
type, and operations have to say what becomes of it. A user's network may; the library's
programs leave it to XLA, as under automatic axes. So arrays are labelled anew where
they come in, without a copy, and results get the labels of what was given. What the
user wrote is called within the user's own mesh.

Knows arrays and meshes; knows no network.
"""

import contextlib
import contextvars
import functools
import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nettrim_jax._trees import known, path_of
from nettrim_jax.typing import Array

Function = TypeVar("Function", bound=Callable)

# these were elsewhere before jax 0.7
_enter: Any = getattr(jax, "set_mesh", None) or getattr(jax.sharding, "use_mesh", None)
if hasattr(jax, "reshard"):
    _reshard: Any = jax.reshard
    _auto_axes: Any = jax.sharding.auto_axes
else:
    _reshard = importlib.import_module("jax.experimental.shard").reshard
    _auto_axes = importlib.import_module("jax.experimental.shard").auto_axes
_NOWHERE = Mesh(np.empty((), object), ())


class _Left:
    """A user's mesh that was left, and can be entered again."""

    def __init__(self):
        self.leave()

    def leave(self) -> None:
        self._inside = _enter(_NOWHERE)
        self._inside.__enter__()

    def enter(self) -> None:
        self._inside.__exit__(None, None, None)


_LEFT: contextvars.ContextVar[_Left | None] = contextvars.ContextVar("left")


def explicit(mesh: Any) -> bool:
    """Whether any axis of a mesh is part of the types of arrays."""
    return AxisType.Explicit in (getattr(mesh, "axis_types", None) or ())


@contextlib.contextmanager
def own() -> Iterator[None]:
    """Leaves the user's mesh if it has explicit axes; also a decorator."""
    if not explicit(jax.sharding.get_abstract_mesh()):
        yield
        return
    try:
        left = _Left()
    except ValueError:  # within a program of the user's own
        yield
        return
    token = _LEFT.set(left)
    try:
        yield
    finally:
        _LEFT.reset(token)
        left.enter()


@contextlib.contextmanager
def users() -> Iterator[None]:
    """Enters the user's mesh again, to call what the user wrote."""
    left = _LEFT.get(None)
    if left is None:
        yield
        return
    left.enter()
    token = _LEFT.set(None)
    try:
        yield
    finally:
        _LEFT.reset(token)
        left.leave()


def plain(tree: Any) -> Any:
    """Arrays without sharding types: the same pieces, on meshes of automatic axes.

    Where the mesh cannot be left, within a program of the user's, they keep them.
    """
    return tree if _stays() else jax.tree.map(_plain, tree)


def _stays() -> bool:
    return explicit(jax.sharding.get_abstract_mesh())


def _plain(a: Any) -> Any:
    mesh = _mesh(a)
    if mesh is None:
        return a
    with jax.ensure_compile_time_eval():  # a constant stays one
        return jax.device_put(a, NamedSharding(_twin(mesh), a.sharding.spec))


def _mesh(a: Any) -> Mesh | None:
    """The mesh of a known array, if it has explicit axes."""
    if not isinstance(a, jax.Array) or not known(a):
        return None
    mesh = getattr(a.sharding, "mesh", None)
    return mesh if explicit(mesh) else None


def _twin(mesh: Mesh) -> Mesh:
    """The same mesh with automatic axes."""
    names = mesh.axis_names
    return Mesh(mesh.devices, names, axis_types=(AxisType.Auto,) * len(names))


def typed(tree: Any, meshes: Any) -> Any:
    """Arrays on meshes like these but with automatic axes, with these meshes' types.

    Args:
      tree: a pytree.
      meshes: meshes with explicit axes.
    """
    twins = {_twin(mesh): mesh for mesh in meshes}

    def one(a: Any) -> Any:
        if not isinstance(a, jax.Array) or not known(a):
            return a
        sharding: Any = a.sharding
        mesh = twins.get(getattr(sharding, "mesh", None))  # pyright: ignore
        if mesh is None:
            return a
        return jax.device_put(a, NamedSharding(mesh, sharding.spec))

    return jax.tree.map(one, tree) if twins else tree


def require_free(name: str, tree: Any, error: type[Exception]) -> None:
    """Raises ``error`` with the path of the first array whose sharded type stays."""
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not isinstance(leaf, jax.Array) or (known(leaf) and not _stays()):
            continue
        sharding = jax.typeof(leaf).sharding
        if explicit(sharding.mesh) and any(sharding.spec):
            raise error(
                f"{name}: {path_of(keys) or 'the array'} has a type of explicit axes, "
                f"{jax.typeof(leaf)}, within a program; prune outside of jax.jit, "
                "jax.vmap and jax.grad, or put the call into jax.sharding.auto_axes"
            )


def meshes_of(tree: Any) -> set[Mesh]:
    """The meshes with explicit axes that hold arrays of a tree."""
    found = map(_mesh, jax.tree.leaves(tree))
    return {mesh for mesh in found if mesh is not None}


def several(a: Any) -> bool:
    """Whether a known array lies on several devices."""
    return isinstance(a, jax.Array) and known(a) and len(a.devices()) > 1


def _moved(a: Array, sharding: Any) -> Array:
    """A known array with another sharding."""
    to = sharding
    if explicit(getattr(to, "mesh", None)):
        a, to = _plain(a), NamedSharding(_twin(to.mesh), to.spec)
    same = several(a) and a.devices() == to.device_set
    if same and not a.sharding.is_equivalent_to(to, a.ndim):
        # jax.device_put would take it together in the host's memory
        with own():
            a = _mover(to)(a)
    return jax.device_put(a, sharding)


@functools.lru_cache(maxsize=64)
def _mover(sharding: Any) -> Callable[[Array], Array]:
    return jax.jit(lambda a: a, out_shardings=sharding)


def like(new: Array, given: Array) -> Array:
    """An array where a given one lies, with its sharding; traced ones stay."""
    if not (known(new) and known(given)) or new.sharding == given.sharding:
        return new
    if given.committed:
        return _moved(new, given.sharding)
    # one that no device was asked for goes with arrays on any device
    return jax.device_put(np.asarray(new)) if several(new) else new


def beside(a: Any, other: Any) -> Any:
    """An array with the sharding type of another one of its shape, if that has one."""
    if known(other):
        return a if _mesh(other) is None else _moved(a, other.sharding)
    sharding = jax.typeof(other).sharding
    return _reshard(a, sharding) if explicit(sharding.mesh) else a


def automatic(function: Callable, given: Any, like: Any) -> Any:
    """A function's values, with automatic axes also within a user's program.

    Args:
      function: of one tree of arrays; it has no name for any axis.
      given: that tree.
      like: arrays in the tree of the values, with their shapes; the values are sharded
        as these are.
    """
    if not _stays():
        return function(given)
    specs = jax.tree.map(lambda a: jax.typeof(a).sharding.spec, like)
    return _auto_axes(function, out_sharding=specs)(given)


def pieces(a: Any) -> int:
    """The number of pieces of the leading axis, if they are part of the type."""
    mesh = _mesh(a)
    if mesh is None or not len(a.sharding.spec):
        return 1
    first = a.sharding.spec[0]
    names = first if isinstance(first, tuple) else (first,)
    return math.prod(mesh.shape[name] for name in names if name is not None)


def take(a: Any, rows: np.ndarray) -> Any:
    """``a[rows]``, sharded as ``a`` is as far as the new length allows."""
    mesh = _mesh(a)
    if mesh is None:
        return a[rows]
    spec = a.sharding.spec
    if len(rows) % pieces(a):
        spec = PartitionSpec(None, *spec[1:])
    with own():
        return _moved(_plain(a)[rows], NamedSharding(mesh, spec))


def untyped(function: Function) -> Function:
    """Decorates a function of arrays, which may then lie on meshes of explicit axes."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        meshes = meshes_of((args, kwargs))
        with own():
            if not meshes:
                return function(*args, **kwargs)
            args, kwargs = plain((args, kwargs))
            return typed(function(*args, **kwargs), meshes)

    return call  # pyright: ignore[reportReturnType]
