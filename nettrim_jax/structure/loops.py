"""Rules of control flow: loops, steps of a scan, branches.

Knows these operations; knows no program around them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from nettrim_jax.structure.ids import STATE
from nettrim_jax.structure.registry import Cut, Follower, rule
from nettrim_jax.structure.values import Axis, Value, least
from nettrim_jax.tracing import jaxprs

STEPS = "a `scan` goes through it"


def met(walk: Follower, one: Value, other: Value) -> Value:
    """What is known of what may be either of two values."""
    axes = []
    for pair in zip(one.axes, other.axes, strict=True):
        axis = walk.unite(pair)
        if axis.ids is not None:
            both = [one.levels for one in pair]
            axis = Axis(axis.ids, "", least(both))
        axes.append(axis)
    whole = least([one.whole, other.whole])
    source = one.source if other.source is not None else None
    return Value(tuple(axes), whole, source=source)


def _alike(one: Value, other: Value) -> bool:
    """Whether two values are the same as far as is known."""
    pairs = zip(one.axes, other.axes, strict=True)
    same = all(
        (a.ids is None) == (b.ids is None) and np.array_equal(a.levels, b.levels)
        for a, b in pairs
        if a.ids is not None or b.ids is not None
    )
    kept = (one.source is None) == (other.source is None)
    return same and kept and np.array_equal(one.whole, other.whole)


def _state(walk: Follower, values: Sequence[Value]) -> list[Value]:
    for value in values:
        for axis in value.axes:
            if axis.ids is not None:
                walk.ids.mark(axis.ids, STATE)
    return [
        dataclasses.replace(v.moved(v.axes), number=None, leaf=None) for v in values
    ]


def _settled(
    walk: Follower, body: Any, before: list[Value], state: list[Value], steps: Any
) -> tuple[list[Value], list[Value]]:
    """Runs a body until what is known of its state does not change.

    Returns:
      The state, and what else the last run makes.
    """
    state = _state(walk, state)
    while True:
        out = walk.call(body, [*before, *state, *steps.values], steps.loop)
        after = [met(walk, a, b) for a, b in zip(state, out, strict=False)]
        if all(map(_alike, state, after)):
            return after, out[len(state) :]
        state = after
        walk.again()


@dataclasses.dataclass(eq=False)
class _Steps:
    """What each step of a loop is given, and the loop's number."""

    values: list[Value]
    loop: int | None = None


def _scanned(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    first, carried = jaxprs.scan_counts(eqn)
    consts, carry = args[:first], args[first : first + carried]

    def step(carry: Any, xs: Any) -> Any:
        out = cut.bodies[0](*consts, *carry, *xs)
        return out[:carried], out[carried:]

    params = eqn.params
    carry, ys = lax.scan(
        step,
        carry,
        args[first + carried :],
        params["length"],
        params["reverse"],
        params.get("unroll", 1),
    )
    return [*carry, *ys]


@rule("scan", _scanned)
def _scan(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """What is carried goes together; the axis of the steps has to stay."""
    first, carried = jaxprs.scan_counts(eqn)
    loop = walk.enter(eqn.params["length"])
    xs = []
    for value in inputs[first + carried :]:
        walk.stay(value.axes[0], STEPS)
        origin = None
        if value.origin is not None:
            origin = value.origin[0], value.origin[1] + 1
            walk.stepped(value.origin, loop)
        inner = dataclasses.replace(value.moved(value.axes[1:]), origin=origin)
        xs.append(inner)
    carry = inputs[first : first + carried]
    steps = _Steps(xs, loop)
    carry, ys = _settled(walk, eqn.params["jaxpr"], inputs[:first], carry, steps)
    out = [Axis(None, STEPS)]
    stacked = [dataclasses.replace(y.moved([*out, *y.axes]), number=None) for y in ys]
    return [*carry, *stacked]


def _looped(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    n, m = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    body, goes_on = cut.bodies  # as the walk has come by them
    return lax.while_loop(
        lambda state: goes_on(*args[:n], *state)[0],
        lambda state: body(*args[n : n + m], *state),
        args[n + m :],
    )


@rule("while", _looped)
def _while(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """What is carried goes together."""
    n, m = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    given, state = inputs[n : n + m], inputs[n + m :]
    body = eqn.params["body_jaxpr"]
    state, _ = _settled(walk, body, given, state, _Steps([]))
    walk.call(eqn.params["cond_jaxpr"], [*inputs[:n], *state])
    return state


def _branched(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    index, *operands = args
    # a two-way cond has a boolean index
    index = lax.convert_element_type(index, np.int32)
    return lax.switch(index, cut.bodies, *operands)


@rule("cond", _branched)
def _cond(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """What the branches make goes together."""
    found = None
    for body in eqn.params["branches"]:
        out = walk.call(body, inputs[1:])
        pairs = zip(found, out, strict=True) if found is not None else ()
        found = out if found is None else [met(walk, a, b) for a, b in pairs]
    assert found is not None
    return found
