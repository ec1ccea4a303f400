"""Rules of calls that keep a rule of their own: derivatives, rematerialisation.

The derivative that a function was given is found by asking JAX for it, and its axes are
followed like those of the function itself.

Knows these operations; knows no program around them.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax.structure import values
from nettrim_jax.structure.evaluate import Marks, evaluate, given
from nettrim_jax.structure.registry import Cut, Follower, Kept, rule
from nettrim_jax.structure.values import ANY, Axis, Value
from nettrim_jax.structure.walk import Walk
from nettrim_jax.tracing import jaxprs


def _moving(avals: Sequence[Any]) -> list[int]:
    """The positions of values that have derivatives."""
    return [k for k, a in enumerate(avals) if jnp.issubdtype(a.dtype, jnp.inexact)]


def _structs(variables: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in variables]


def _no_derivative(shape: Any) -> np.ndarray:
    """What stands for the derivative of an integer."""
    return np.zeros(shape, jax.dtypes.float0)


def _partial(eqn: Any, args: Sequence[Any], moving: Sequence[int]) -> Any:
    """The operation as a function of the operands that have derivatives."""

    def call(*some: Any) -> list[Any]:
        every = list(args)
        for k, one in zip(moving, some, strict=True):
            every[k] = one
        return jaxprs.bind(eqn.primitive, eqn.params, every)

    return call


def _pushed(eqn: Any) -> Any:
    """The jaxpr of results and tangents, of operands and tangents."""
    structs = _structs(eqn.invars)
    moving = _moving(structs)

    def push(primals: list[Any], tangents: list[Any]) -> Any:
        call = _partial(eqn, primals, moving)
        out, dots = jax.jvp(call, [primals[k] for k in moving], tangents)
        return out, [dot for dot in dots if dot.dtype != jax.dtypes.float0]

    return jax.make_jaxpr(push)(structs, [structs[k] for k in moving])


def _pulled(eqn: Any) -> tuple[Any, Any]:
    """The jaxprs of results and residuals, and of cotangents of the operands."""
    structs, outs = _structs(eqn.invars), _structs(eqn.outvars)
    moving, made = _moving(structs), _moving(outs)
    rest: list[Any] = []  # residuals without numbers in them, and how all go together

    def run(primals: list[Any]) -> Any:
        call = _partial(eqn, primals, moving)
        out, pull = jax.vjp(call, *(primals[k] for k in moving))
        leaves, tree = jax.tree.flatten(pull)
        bare = [leaf.dtype == jax.dtypes.float0 for leaf in leaves]
        rest[:] = [tree, bare, [leaf.shape for leaf in leaves]]
        return out, [leaf for leaf, no in zip(leaves, bare, strict=True) if not no]

    forward = jax.make_jaxpr(run)(structs)
    tree, bare, shapes = rest

    def back(residuals: list[Any], cotangents: list[Any]) -> Any:
        have, each = iter(residuals), iter(cotangents)
        leaves = [
            _no_derivative(shape) if no else next(have)
            for no, shape in zip(bare, shapes, strict=True)
        ]
        wanted = [
            next(each) if k in made else _no_derivative(out.shape)
            for k, out in enumerate(outs)
        ]
        return jax.tree.unflatten(tree, leaves)(wanted)

    avals = forward.out_avals[len(outs) :]
    kept = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    return forward, jax.make_jaxpr(back)(kept, [outs[k] for k in made])


def _derived(value: Value, top: int) -> Value:
    """What is known of a derivative: zero where the value is always zero."""
    table = np.array([values.BAD, ANY, ANY, top], np.int8)
    axes = [
        axis if axis.ids is None else Axis(axis.ids, "", table[axis.levels])
        for axis in value.axes
    ]
    return Value(tuple(axes), table[value.whole])


def _unite(walk: Follower, ones: Sequence[Value], others: Sequence[Value]) -> None:
    for one, other in zip(ones, others, strict=True):
        for pair in zip(one.axes, other.axes, strict=True):
            walk.unite(pair)


def _pushed_too(walk: Walk, eqn: Any, inputs: list[Value], found: list[Value]) -> None:
    """Follows axes through the derivative in forward mode."""
    moving, made = _moving(_structs(eqn.invars)), _moving(_structs(eqn.outvars))
    tangents = [_derived(inputs[k], values.ZERO) for k in moving]
    scope = walk.run(_pushed(eqn), [*inputs, *tangents])
    out = [scope.value(atom) for atom in scope.closed.jaxpr.outvars]
    _unite(walk, out, [*found, *(found[k] for k in made)])


def _pulled_too(walk: Walk, eqn: Any, inputs: list[Value], found: list[Value]) -> None:
    """Follows axes through the derivative in reverse mode."""
    moving, made = _moving(_structs(eqn.invars)), _moving(_structs(eqn.outvars))
    forward, back = _pulled(eqn)
    scope = walk.run(forward, inputs)
    out = [scope.value(atom) for atom in forward.jaxpr.outvars]
    _unite(walk, out[: len(found)], found)
    cotangents = [_derived(found[k], ANY) for k in made]
    scope = walk.run(back, [*out[len(found) :], *cotangents])
    out = [scope.value(atom) for atom in back.jaxpr.outvars]
    _unite(walk, out, [inputs[k] for k in moving])


def _with_rule(walk: Walk, eqn: Any, inputs: list[Value], follow: Any) -> list[Value]:
    """The results of a call, whose derivative goes by the same axes."""
    found = walk.call(jaxprs.called(eqn), inputs)
    if walk.quiet:  # the function within its own derivative
        return found
    walk.quiet = True
    try:
        follow(walk, eqn, inputs, found)
    finally:
        walk.quiet = False
    return found


def _jvp_kept(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    moving, made = _moving(_structs(eqn.invars)), _moving(_structs(eqn.outvars))

    @jax.custom_jvp
    def call(*args: Any) -> list[Any]:
        return cut.bodies[0](*args)

    @call.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        closed = _pushed(eqn)
        walk = Walk(strict=False)
        kept = [*cut.before, *(cut.before[k] for k in moving)]
        inputs = given(walk, [var.aval for var in closed.jaxpr.invars], kept)
        scope = walk.run(closed, inputs)
        marks = _marked(walk, inputs, kept)
        out = evaluate(scope, marks, [*primals, *(tangents[k] for k in moving)])
        count = len(eqn.outvars)
        dots = iter(out[count:])
        return out[:count], [
            next(dots) if k in made else _no_derivative(one.shape)
            for k, one in enumerate(out[:count])
        ]

    return call(*args)


def _vjp_kept(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    moving, made = _moving(_structs(eqn.invars)), _moving(_structs(eqn.outvars))
    plan: list[Any] = []

    @jax.custom_vjp
    def call(*args: Any) -> list[Any]:
        return cut.bodies[0](*args)

    def forward(*args: Any) -> Any:
        first, second = _pulled(eqn)
        walk = Walk(strict=False)
        avals = [var.aval for var in first.jaxpr.invars]
        inputs = given(walk, avals, cut.before)
        ahead = walk.run(first, inputs)
        out = [ahead.value(atom) for atom in first.jaxpr.outvars]
        count = len(eqn.outvars)
        outs = given(walk, [var.aval for var in eqn.outvars], cut.after)
        _unite(walk, out[:count], outs)
        back = walk.run(second, [*out[count:], *(outs[k] for k in made)])
        marks = _marked(walk, [*inputs, *outs], [*cut.before, *cut.after])
        plan[:] = [back, marks]
        results = evaluate(ahead, marks, args)
        return results[:count], results[count:]

    def backward(residuals: Any, cotangents: Any) -> Any:
        back, marks = plan
        out = evaluate(back, marks, [*residuals, *(cotangents[k] for k in made)])
        each = iter(out)
        return tuple(next(each) if k in moving else None for k in range(len(args)))

    call.defvjp(forward, backward)
    return call(*args)


def _marked(walk: Walk, inputs: list[Value], kept: Sequence[Kept]) -> Marks:
    return Marks(walk, list(zip(inputs, kept, strict=True)))


@rule("custom_jvp_call", _jvp_kept)
def _custom_jvp(walk: Walk, eqn: Any, inputs: list[Value]) -> list[Value]:
    """The function, and its derivative in forward mode."""
    return _with_rule(walk, eqn, inputs, _pushed_too)


@rule("custom_vjp_call custom_vjp_call_jaxpr", _vjp_kept)
def _custom_vjp(walk: Walk, eqn: Any, inputs: list[Value]) -> list[Value]:
    """The function, and its derivative in reverse mode."""
    return _with_rule(walk, eqn, inputs, _pulled_too)


def _rematerialised(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    params = eqn.params
    call = jax.checkpoint(
        cut.bodies[0], prevent_cse=params["prevent_cse"], policy=params["policy"]
    )
    return call(*args)


@rule("checkpoint remat remat2", _rematerialised)
def _remat(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """The function, which is run again in the backward pass."""
    return walk.call(jaxprs.called(eqn), inputs)
