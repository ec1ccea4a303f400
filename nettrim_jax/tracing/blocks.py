"""A ``shard_map`` as a ``vmap`` over blocks, which says the same of one device.

Each device has its block of every operand. Stacked along one axis per axis of the mesh,
the blocks are the operand again, reshaped; a collective is one over these axes.

Knows arrays and the parameters of ``shard_map``; knows no layers and no solver.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Names = Sequence[tuple[str, ...]]  # per axis of an array, axes of the mesh


def shard_map(eqn: Any, args: Sequence[Any], body: Callable[..., Any]) -> list[Any]:
    """The results of a ``shard_map``.

    Args:
      eqn: its equation in a jaxpr.
      args: its operands.
      body: a function of the blocks of one device.
    """
    params = eqn.params
    sizes = dict(params["mesh"].shape)
    taken = params.get("newly_manual_axes", params.get("manual_axes"))
    if taken is None:  # before jax 0.7
        taken = set(sizes) - set(params["auto"])
    axes = [name for name in sizes if name in taken]
    inner, outer = (
        [_names(spec, len(var.aval.shape)) for spec, var in zip(*pair, strict=True)]
        for pair in (
            (params.get("in_specs") or params["in_names"], eqn.invars),
            (params.get("out_specs") or params["out_names"], eqn.outvars),
        )
    )
    blocks = [
        _apart(a, names, axes, sizes) for a, names in zip(args, inner, strict=True)
    ]
    function = body
    for name in reversed(axes):
        mapped = [0 if name in sum(names, ()) else None for names in inner]
        function = _mapped(function, mapped, name, sizes[name])
    answers = function(*blocks)
    return [
        _together(a, names, axes, var.aval.shape)
        for a, names, var in zip(answers, outer, eqn.outvars, strict=True)
    ]


def _mapped(
    function: Callable, mapped: list[int | None], name: str, size: int
) -> Callable:
    # the counter is there where no operand has the axis
    def counted(_: Any, *args: Any) -> Any:
        return function(*args)

    each = jax.vmap(counted, (0, *mapped), axis_name=name, axis_size=size)
    return lambda *args: each(jnp.arange(size), *args)


def _names(spec: Any, ndim: int) -> Names:
    """The mesh's axes of each axis of an array."""
    if isinstance(spec, dict):  # before jax 0.7
        return [tuple(spec.get(axis, ())) for axis in range(ndim)]
    given = [*spec, *[None] * (ndim - len(spec))]
    return [() if n is None else n if isinstance(n, tuple) else (n,) for n in given]


def _apart(a: Any, names: Names, axes: Sequence[str], sizes: dict[str, int]) -> Any:
    """The blocks of an array, ``[*axes of the mesh that it has, *block]``."""
    shape: list[int] = []
    at: dict[str, int] = {}
    local: list[int] = []
    for n, mine in zip(jnp.shape(a), names, strict=True):
        for name in mine:
            at[name] = len(shape)
            shape.append(sizes[name])
        local.append(len(shape))
        shape.append(n // math.prod(sizes[name] for name in mine))
    order = [at[name] for name in axes if name in at]
    return jnp.reshape(a, shape).transpose(*order, *local) if order else a


def _together(a: Any, names: Names, axes: Sequence[str], shape: tuple[int, ...]) -> Any:
    """The array of blocks, ``[*all axes of the mesh, *block]``."""
    used = sum(names, ())
    # along the others all devices have the same
    a = a[tuple(slice(None) if name in used else 0 for name in axes)]
    at = {name: i for i, name in enumerate(name for name in axes if name in used)}
    order: list[int] = []
    for axis, mine in enumerate(names):
        order += [*(at[name] for name in mine), len(at) + axis]
    return a.transpose(order).reshape(shape) if at else a
