"""A jaxpr as it would be on one device, without types of shardings and ``shard_map``.

A network on a mesh with explicit axes is traced with its own types, as it may say by
itself how results are sharded. What is then done with it leaves that to XLA.

Knows jaxprs; knows no layers and no solver.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core

from nettrim_jax._sharding import explicit, own, plain, users
from nettrim_jax.tracing import blocks, jaxprs

# operations that only change the type
LABELS = frozenset("reshard mesh_cast sharding_constraint pvary pcast".split())


def make_jaxpr(function: Callable, *args: Any) -> Any:
    """The closed jaxpr of a function, traced with types and then rid of them."""
    with users():
        closed = jax.make_jaxpr(function)(*args)
    jaxpr = closed.jaxpr
    if not any(map(_typed, [*jaxpr.invars, *jaxpr.constvars])) and _plain(jaxpr):
        return closed

    def run(*args: Any) -> list[Any]:
        return _run(jaxpr, plain(closed.consts), args)

    shapes = (jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in jaxpr.invars)
    with own():
        return jax.make_jaxpr(run)(*shapes)


def _typed(var: Any) -> bool:
    return explicit(getattr(getattr(var.aval, "sharding", None), "mesh", None))


def _plain(jaxpr: Any) -> bool:
    """Whether no operation has a type, or is a ``shard_map``."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "shard_map" or any(map(_typed, eqn.outvars)):
            return False
        inner = jaxprs.called(eqn)
        bodies = jaxprs.branches(eqn) if inner is None else [inner]
        if not all(_plain(body.jaxpr) for body in bodies):
            return False
    return True


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        if isinstance(atom, jex_core.Literal):  # which may have a type, too
            aval: Any = atom.aval
            return np.asarray(atom.val, aval.dtype)
        return env[atom]

    for eqn in jaxpr.eqns:
        out = _apply(eqn, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, out, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _closed(closed: Any) -> Callable[..., list[Any]]:
    return lambda *args: _run(closed.jaxpr, plain(closed.consts), args)


def _apply(eqn: Any, args: list[Any]) -> Sequence[Any]:
    name, params = eqn.primitive.name, eqn.params
    body = jaxprs.called(eqn)
    if body is not None:
        return _closed(body)(*args)
    if name in LABELS or (name == "device_put" and not _rest(params)):
        return args
    if name == "shard_map":
        body = eqn.params["jaxpr"]
        return blocks.shard_map(eqn, args, lambda *args: _run(body, (), args))
    if name == "psum_invariant":
        return [jax.lax.psum(a, eqn.params["axes"]) for a in args]
    if name in CONTROL:
        return CONTROL[name](eqn, args)
    return jaxprs.bind(eqn.primitive, {k: _without(v) for k, v in params.items()}, args)


def _rest(params: Any) -> bool:
    """Whether a transfer does more than to change the type."""
    return not all(map(_is_type, params["devices"]))


def _is_type(value: Any) -> bool:
    return isinstance(value, jax.sharding.NamedSharding)


def _without(value: Any) -> Any:
    return None if _is_type(value) else value


def _scan(eqn: Any, args: list[Any]) -> list[Any]:
    first, carried = jaxprs.scan_counts(eqn)
    body, params = _closed(eqn.params["jaxpr"]), eqn.params

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        out = body(*args[:first], *carry, *xs)
        return out[:carried], out[carried:]

    carry, xs = args[first : first + carried], args[first + carried :]
    carry, ys = jax.lax.scan(step, carry, xs, params["length"], params["reverse"])
    return [*carry, *ys]


def _cond(eqn: Any, args: list[Any]) -> list[Any]:
    index, *operands = args
    # a two-way cond has a boolean index
    index = jax.lax.convert_element_type(index, "int32")
    branches = list(map(_closed, eqn.params["branches"]))
    return jax.lax.switch(index, branches, *operands)


def _while(eqn: Any, args: list[Any]) -> list[Any]:
    n, m = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    goes_on, body = (_closed(eqn.params[f"{name}_jaxpr"]) for name in ("cond", "body"))
    return jax.lax.while_loop(
        lambda carry: goes_on(*args[:n], *carry)[0],
        lambda carry: body(*args[n : n + m], *carry),
        args[n + m :],
    )


CONTROL = {"scan": _scan, "cond": _cond, "while": _while}
