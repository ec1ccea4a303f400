"""Dead units: those without a weight out, and constants that the next bias can take.

A unit is dead if every sum over it misses nothing without it, in the params as given.
A unit that makes a constant, whatever the data, becomes so once that constant is added
to the next bias and the weights out of it are zero.

Knows walks and values; cuts nothing.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

from nettrim_jax._trees import from_host, is_array
from nettrim_jax.structure.cutting import indices_of
from nettrim_jax.structure.groups import roots_of, structure_of
from nettrim_jax.structure.ids import Settled
from nettrim_jax.structure.program import Followed, Program, followed
from nettrim_jax.structure.records import Group, Structure
from nettrim_jax.structure.values import holds_numbers
from nettrim_jax.structure.walk import Scope, Seen
from nettrim_jax.tracing import jaxprs
from nettrim_jax.typing import Batch


class Dead(NamedTuple):
    """Units that can go without a change of the network.

    Attributes:
      structure: the groups.
      remove: by the name of a group, its dead units, ``[k]`` or ``[*steps, k]``.
      arrays: the leaves, with constants of dead units in the next biases.
      folded: how many constants other than zero that were.
      walked: the program's axes.
    """

    structure: Structure
    remove: dict[str, np.ndarray]
    arrays: list[Any]
    folded: int
    walked: Followed


def found(program: Program, batch: Batch) -> Dead:
    """The dead units of a network whose params are known."""
    arrays = [_host(array) for array in program.arrays]
    walked = followed(program, arrays)
    structure, folded = structure_of(walked), 0
    while True:
        arrays, count, changed = _folded(walked, arrays, batch)
        folded += count
        if changed:
            walked = followed(program, arrays)
        remove = {
            group.name: _dead_units(walked, program, arrays, group)
            for group in structure.groups
        }
        before, arrays = arrays, _without(structure, remove, arrays)
        if not changed and all(a is b for a, b in zip(before, arrays, strict=True)):
            break
        walked = followed(program, arrays)
    out = [
        given if _same(given, new) else from_host(new, given)
        for given, new in zip(program.arrays, arrays, strict=True)
    ]
    return Dead(structure, remove, out, folded, walked)


def _host(array: Any) -> Any:
    return np.asarray(array) if holds_numbers(array.dtype) else array


def _same(given: Any, new: Any) -> bool:
    if not isinstance(new, np.ndarray):
        return True
    return np.array_equal(np.asarray(given), new)


def _missed(walked: Followed, settled: Settled) -> np.ndarray:
    """By root, the ids of which some sum would miss something."""
    missed = np.zeros(walked.walk.ids.count, bool)
    for ids in walked.walk.missed:
        missed[settled.root[ids]] = True
    return walked.walk.ids.to_parts(missed)


def _dead_units(
    walked: Followed, program: Program, arrays: Sequence[Any], group: Group
) -> np.ndarray:
    """The units of a group that no sum misses; one stays, and as many at each step."""
    if not group.steps:
        return _unmissed(walked, group)[: group.count - 1]
    rows = []
    for step in np.ndindex(*group.steps):
        # only what the leaves have at this step
        own = [
            np.broadcast_to(array[step], array.shape)
            if _stepped(walked, k, len(step))
            else array
            for k, array in enumerate(arrays)
        ]
        rows.append(_unmissed(followed(program, own), group))
    count = min(group.count - 1, *map(len, rows))
    return np.stack([row[:count] for row in rows]).reshape(*group.steps, count)


def _stepped(walked: Followed, leaf: int, depth: int) -> bool:
    return all((leaf, k) in walked.walk.steps for k in range(depth))


def _unmissed(walked: Followed, group: Group) -> np.ndarray:
    settled = walked.walk.ids.settle()
    missed = _missed(walked, settled)
    return np.flatnonzero(~missed[roots_of(walked, settled, group)])


def _without(
    structure: Structure, remove: dict[str, np.ndarray], arrays: Sequence[Any]
) -> list[Any]:
    """The leaves with zeros where units are removed; the same ones if they are."""
    out = list(arrays)
    for name, units in remove.items():
        for entry in structure[name].entries if units.size else ():
            if entry.leaf is None:
                continue
            array = out[entry.leaf]
            shape = [1] * array.ndim
            shape[: units.ndim - 1] = units.shape[:-1]
            shape[entry.axis] = len(entry.units)
            hit = indices_of(entry, units).reshape(shape)
            if jnp.issubdtype(array.dtype, jnp.inexact) and (hit & (array != 0)).any():
                out[entry.leaf] = np.where(hit, np.zeros((), array.dtype), array)
    return out


# ---- constants


@dataclasses.dataclass(eq=False)
class _Fold:
    """Constants of one linear operation that may go into the bias behind it."""

    seen: Seen
    at: np.ndarray  # which indices of the contracted axis
    axis: int  # of the weights' leaf
    bias: Any = None


def _folded(
    walked: Followed, arrays: list[Any], batch: Batch
) -> tuple[list[Any], int, bool]:
    """The leaves with constants in the biases; how many, and whether any changed."""
    walk, settled = walked.walk, walked.walk.ids.settle()
    free = settled.why == 0
    folds, stuck = [], np.zeros(walk.ids.count, bool)
    for seen in walk.seen:
        record = seen.product
        if record.missed is None or record.constant is None:
            for ids in record.inputs if record.axis < 0 else ():
                stuck[settled.root[ids]] = True
            continue
        roots = settled.root[record.inputs[0]]
        at = record.missed & record.constant & free[roots]
        axis = _weights_axis(walked, seen) if at.any() else None
        if axis is None:
            at = np.zeros_like(at)
        stuck[roots[record.missed & ~at]] = True
        if at.any():
            folds.append(_Fold(seen, at, axis or 0, _bias_of(walked, seen)))
    stuck = walk.ids.to_parts(stuck)
    for fold in folds:
        fold.at &= ~stuck[settled.root[fold.seen.product.inputs[0]]]
    folds = [fold for fold in folds if fold.at.any()]
    if not folds:
        return arrays, 0, False
    values = _looked_up(walked, folds, arrays, batch)
    # a constant other than zero needs a bias, and no padding around it
    for fold, (constant, _) in zip(folds, values, strict=True):
        roots = settled.root[fold.seen.product.inputs[0]]
        needs = fold.at & (constant != 0)
        if fold.bias is None or fold.seen.product.padded:
            stuck[roots[needs]] = True
    stuck = walk.ids.to_parts(stuck)
    out, count, changed = list(arrays), 0, False
    for fold, (constant, deltas) in zip(folds, values, strict=True):
        roots = settled.root[fold.seen.product.inputs[0]]
        at = fold.at & ~stuck[roots]
        leaf = fold.seen.product.leaf
        if leaf is None or not at.any():
            continue
        changed = True
        weights = out[leaf].copy()
        weights[(slice(None),) * fold.axis + (at,)] = 0
        out[leaf] = weights
        moving = at & (constant != 0)
        if moving.any():
            count += len(np.unique(roots[moving]))
            own = out[fold.bias]
            delta = deltas(moving)
            wide = own.astype(np.promote_types(own.dtype, np.float32))
            out[fold.bias] = (wide + delta.reshape(own.shape)).astype(own.dtype)
    return out, count, changed


def _weights_axis(walked: Followed, seen: Seen) -> int | None:
    """The axis of the leaf that is summed over; None if the leaf is not only that."""
    record = seen.product
    leaf = record.leaf
    if leaf is None or leaf >= walked.walk.leaves or not seen.scope.plain:
        return None
    if walked.walk.reads[leaf] != 1:
        return None
    for at, axis in enumerate(walked.leaves[leaf].axes):
        if axis.ids is not None and axis.ids is record.weight:
            return at
    return None


def _bias_of(walked: Followed, seen: Seen) -> int | None:
    """The leaf of the bias, if it is added here and read nowhere else."""
    walk = walked.walk
    if seen.bias is None or walk.responses[walk.seen.index(seen)] != 1:
        return None
    leaf, ids = seen.bias
    if leaf >= walk.leaves or walk.reads[leaf] != 1:
        return None
    own = [axis.ids for axis in walked.leaves[leaf].axes if axis.ids is not None]
    same = len(own) == len(ids) and all(a is b for a, b in zip(own, ids, strict=True))
    return leaf if same else None


def _looked_up(
    walked: Followed, folds: list[_Fold], arrays: list[Any], batch: Batch
) -> list[tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]]:
    """Of each operation, its constants, and what some of them add to its result."""
    zeros = [
        np.zeros(leaf.shape, leaf.dtype) if is_array(leaf) else leaf
        for leaf in jax.tree.leaves(batch)
    ]

    def operands(args: list[Any]) -> list[Any]:
        seen: dict[int, list[Any]] = {}
        _run(walked.scope, args, {id(f.seen): f.seen for f in folds}, seen)
        return [seen[id(fold.seen)] for fold in folds]

    known = jax.jit(operands)([*arrays, *zeros])
    out = []
    for fold, args in zip(folds, known, strict=True):
        record = fold.seen.product
        act = np.asarray(args[record.act])
        rest = tuple(0 for _ in range(act.ndim - 1))
        constant = np.moveaxis(act, record.axis, -1)[rest]

        def deltas(at: np.ndarray, args: Any = args, fold: _Fold = fold) -> Any:
            record, eqn = fold.seen.product, _equation(fold.seen)
            shape = [1] * args[record.act].ndim
            shape[record.axis] = -1
            only = np.where(at.reshape(shape), np.asarray(args[record.act]), 0)
            moved = list(args)
            moved[record.act] = only.astype(args[record.act].dtype)
            made = jaxprs.bind(eqn.primitive, eqn.params, moved)[0]
            value = fold.seen.scope.values[eqn.outvars[0]]
            return np.asarray(made)[_behind(fold, value)]

        out.append((constant, deltas))
    return out


def _behind(fold: _Fold, value: Any) -> tuple[Any, ...]:
    """Which entries of a result the bias has: its own axes, of the others the first."""
    assert fold.seen.bias is not None
    axes = fold.seen.along
    return tuple(slice(None) if k in axes else 0 for k in range(len(value.axes)))


def _equation(seen: Seen) -> Any:
    return seen.scope.closed.jaxpr.eqns[seen.at]


def _run(
    scope: Scope, args: Sequence[Any], wanted: dict[int, Seen], out: dict[int, Any]
) -> list[Any]:
    """Runs a program, and notes the operands of some operations."""
    jaxpr = scope.closed.jaxpr
    env = dict(zip(jaxpr.invars, args, strict=True))
    env.update(zip(jaxpr.constvars, scope.closed.consts, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex_core.Literal) else env[atom]

    here = {seen.at: key for key, seen in wanted.items() if seen.scope is scope}
    for at, eqn in enumerate(jaxpr.eqns):
        operands = [read(atom) for atom in eqn.invars]
        if at in here:
            out[here[at]] = operands
        inner = scope.inner.get(at, [])
        if len(inner) == 1 and inner[0].plain:
            results = _run(inner[0], operands, wanted, out)
        else:
            results = jaxprs.bind(eqn.primitive, eqn.params, operands)
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
