"""A network as a program whose axes were followed, from its params and its batch.

Knows jaxprs and walks; knows no groups of units.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from nettrim_jax._trees import Filler, paths_of
from nettrim_jax.structure import rules, values
from nettrim_jax.structure.values import Value
from nettrim_jax.structure.walk import (
    INPUT,
    OUTPUT,
    Scope,
    Seen,
    Walk,
    has_loops,
)
from nettrim_jax.tracing.call import jaxpr_of
from nettrim_jax.typing import ApplyFn, Batch, LeafPath, Params

UNUSED = "apply_fn does not use it"


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A traced network.

    Attributes:
      closed: its jaxpr, of the leaves of the params and then of the batch.
      arrays: the leaves of the params, as given.
      paths: their paths.
      fill: makes the tree of its results of arrays.
    """

    closed: Any
    arrays: list[Any]
    paths: tuple[LeafPath, ...]
    fill: Filler


def traced(apply_fn: ApplyFn, params: Params, batch: Batch) -> Program:
    """Traces ``apply_fn`` on params and a batch of which only the shapes matter.

    Raises:
      ApplyFnError: ``apply_fn`` is not callable or fails on these arguments.
      BatchError: a leaf of the batch holds no numbers.
      ParamsError: there is no floating leaf.
    """
    made: list[Filler] = []

    def call(params: Params, batch: Batch) -> Any:
        out = apply_fn(params, batch)
        made.append(Filler(out))
        return out

    # only a function is wrapped, so that what is wrong with others is said of them
    function = call if callable(apply_fn) else apply_fn
    closed, arrays = jaxpr_of(function, params, batch)
    return Program(closed, arrays, paths_of(params), made[-1])


@dataclasses.dataclass(frozen=True, eq=False)
class Followed:
    """A program whose axes were followed.

    Attributes:
      program: the program.
      walk: the walk through it.
      scope: what is known of its values.
      leaves: what is known of the leaves of its params.
      used: which of them it uses.
    """

    program: Program
    walk: Walk
    scope: Scope
    leaves: list[Value]
    used: list[bool]

    def products(self) -> list[Seen]:
        """The linear operations, without those of a body that was run anew."""
        runs = {id(scope) for scope in self.scope.every()}
        return [seen for seen in self.walk.seen if id(seen.scope) in runs]


def followed(program: Program, arrays: Sequence[Any] | None = None) -> Followed:
    """Follows all axes through a program.

    Args:
      program: the program.
      arrays: the leaves of its params, if their values matter; else shapes are enough.
    """
    jaxpr = program.closed.jaxpr
    assert rules.RULES  # a walk finds those that were loaded
    walk = Walk(looping=has_loops(jaxpr))
    count = len(program.arrays)
    walk.leaves = count
    given = program.arrays if arrays is None else arrays
    if arrays is None:
        given = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in given]
    leaves = [walk.leaf(array, k) for k, array in enumerate(given)]
    batch = [values.unknown(INPUT, len(v.aval.shape)) for v in jaxpr.invars[count:]]
    scope = walk.run(program.closed, [*leaves, *batch])
    for atom in jaxpr.outvars:
        walk.read([scope.value(atom)], [])
        for axis in scope.value(atom).axes:
            walk.stay(axis, OUTPUT)
    read = {id(a) for eqn in jaxpr.eqns for a in eqn.invars}
    read |= {id(a) for a in jaxpr.outvars}
    used = [id(var) in read for var in jaxpr.invars[:count]]
    for leaf, use in zip(leaves, used, strict=True):
        for axis in leaf.axes if not use else ():
            walk.stay(axis, UNUSED)
    return Followed(program, walk, scope, leaves, used)
