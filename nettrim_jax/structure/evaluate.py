"""Runs a program of which indices of axes are removed.

Every operation is run as the program has it, with the sizes that are left. What has
nothing removed in it runs just as it is.

Knows operations through their rules; knows no groups of units.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core as jex_core

from nettrim_jax.results import ApplyFnError
from nettrim_jax.structure.registry import RULES, Cut, Kept, taken
from nettrim_jax.structure.values import ANY, Axis, Value, levels
from nettrim_jax.structure.walk import Scope, Walk
from nettrim_jax.tracing import jaxprs


class Marks:
    """Which ids of a walk are removed.

    Args:
      walk: a walk that is through.
      given: values and, per axis of each, the indices that are kept.

    Raises:
      ApplyFnError: an index would have to go that has to stay, or is kept here and
        removed there.
    """

    def __init__(self, walk: Walk, given: Sequence[tuple[Value, Kept]]):
        settled = walk.ids.settle()
        self.root = settled.root
        removed = np.zeros(walk.ids.count, bool)
        known = np.zeros(walk.ids.count, bool)
        wanted = []
        for value, kept in given:
            for axis, indices in zip(value.axes, kept, strict=True):
                if axis.ids is None:
                    if indices is not None:
                        raise ApplyFnError(_stays(axis.why))
                    continue
                roots = self.root[axis.ids]
                known[roots] = True
                left = np.zeros(len(roots), bool)
                left[slice(None) if indices is None else indices] = True
                removed[roots[~left]] = True
                wanted.append((roots, left))
        self.removed = walk.ids.inferred(removed, known)
        stays = np.flatnonzero(self.removed & (settled.why > 0))
        if stays.size:
            raise ApplyFnError(_stays(walk.ids.reasons[settled.why[stays[0]] - 1]))
        if any((self.removed[roots] == left).any() for roots, left in wanted):
            raise ApplyFnError(
                "apply_fn: on this batch indices go together of which some are kept "
                "and others removed; give shrink a batch that is like this one"
            )
        self._kept: dict[int, tuple[Value, Kept]] = {}
        self._touched: dict[int, tuple[Scope, bool]] = {}

    def kept(self, value: Value) -> Kept:
        """Per axis, the indices that are kept; None for all."""
        known = self._kept.get(id(value))
        if known is None:
            kept = tuple(map(self.axis, value.axes))
            known = self._kept[id(value)] = value, kept
        return known[1]

    def axis(self, axis: Axis) -> np.ndarray | None:
        """The indices of an axis that are kept; None for all."""
        if axis.ids is None:
            return None
        gone = self.removed[self.root[axis.ids]]
        return np.flatnonzero(~gone) if gone.any() else None

    def touched(self, scope: Scope) -> bool:
        """Whether anything is removed within a run of a jaxpr."""
        known = self._touched.get(id(scope))
        if known is None:
            some = any(
                k is not None for v in scope.values.values() for k in self.kept(v)
            )
            bodies = [body for inner in scope.inner.values() for body in inner]
            some = some or any(map(self.touched, bodies))
            known = self._touched[id(scope)] = scope, some
        return known[1]

    def counts(self, scope: Scope) -> list[int]:
        """How many indices are kept of every axis of which some are removed."""
        values = [v for run in scope.every() for v in run.values.values()]
        return [len(k) for v in values for k in self.kept(v) if k is not None]


def _stays(why: str) -> str:
    return (
        "apply_fn: on this batch an index that is removed would have to stay: "
        f"{why}; give shrink a batch that is like this one"
    )


def evaluate(scope: Scope, marks: Marks, args: Sequence[Any]) -> list[Any]:
    """The results of a jaxpr, of arguments with indices removed."""
    jaxpr, env = scope.closed.jaxpr, {}
    env.update(zip(jaxpr.invars, args, strict=True))
    for var, array in zip(jaxpr.constvars, scope.closed.consts, strict=True):
        env[var] = taken(array, marks.kept(scope.values[var]))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex_core.Literal) else env[atom]

    for at, eqn in enumerate(jaxpr.eqns):
        inner = scope.inner.get(at, [])
        values = [scope.value(atom) for atom in eqn.invars]
        before = list(map(marks.kept, values))
        after = [marks.kept(scope.values[var]) for var in eqn.outvars]
        operands = [read(atom) for atom in eqn.invars]
        whole = all(k is None for kept in (*before, *after) for k in kept)
        if whole and not any(map(marks.touched, inner)):
            out = jaxprs.bind(eqn.primitive, eqn.params, operands)
        else:
            bodies = [_Body(body, marks) for body in inner]
            rule = RULES.get(eqn.primitive.name)
            if rule is None:
                out = bodies[0](*operands)
            else:
                out = rule.rewrite(
                    eqn, operands, Cut(before, after, list(bodies), values)
                )
        env.update(zip(eqn.outvars, out, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


@dataclasses.dataclass(frozen=True, eq=False)
class _Body:
    """A body of an operation, as a function."""

    scope: Scope
    marks: Marks

    def __call__(self, *args: Any) -> list[Any]:
        return evaluate(self.scope, self.marks, args)


def given(walk: Walk, avals: Sequence[Any], kept: Sequence[Kept]) -> list[Value]:
    """Values of which these indices are kept; all others have to stay."""
    out = []
    for aval, own in zip(avals, kept, strict=True):
        axes = [
            Axis(None, "it is kept as a whole")
            if indices is None
            else Axis(walk.ids.fresh(size), "", levels(ANY, size))
            for size, indices in zip(aval.shape, own, strict=True)
        ]
        out.append(Value(tuple(axes), levels(ANY)))
    return out
