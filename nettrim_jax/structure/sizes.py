"""The report of a smaller network: sizes before and after.

Knows groups and counts; cuts nothing.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nettrim_jax.report.tables import fit, grid
from nettrim_jax.structure.counting import Work, multiply_adds, work
from nettrim_jax.structure.cutting import Leaf
from nettrim_jax.structure.evaluate import Marks
from nettrim_jax.structure.groups import parts_of, roots_of
from nettrim_jax.structure.ids import Settled
from nettrim_jax.structure.marking import shapes_of
from nettrim_jax.structure.program import Followed, Program, traced
from nettrim_jax.structure.records import Structure
from nettrim_jax.structure.values import Value
from nettrim_jax.tracing import jaxprs
from nettrim_jax.typing import ApplyFn, Batch, LeafPath, Params

LISTED = 20  # changed leaves that a printed report names


class Change(NamedTuple):
    """A number before and after.

    Attributes:
      before: that of the full network.
      after: that of the smaller one.
    """

    before: int
    after: int

    @property
    def share(self) -> float:
        """What is left, from 0 to 1; 1 where there was nothing."""
        return self.after / self.before if self.before else 1.0


@dataclasses.dataclass(frozen=True)
class GroupSize:
    """What became of a group.

    Attributes:
      name: its name.
      kind: its kind.
      units: its units.
      parameters: the entries of all leaves in which its units have a part.
      bytes: of these leaves.
      multiply_adds: of all products in which they have a part.
      activations: numbers that these products make and that have its units.
    """

    name: str
    kind: str
    units: Change
    parameters: Change
    bytes: Change
    multiply_adds: Change
    activations: Change


@dataclasses.dataclass(frozen=True)
class SizeReport:
    """Sizes of a network before and after; prints as a table.

    Attributes:
      groups: every group.
      parameters: entries of all leaves.
      bytes: of all leaves.
      multiply_adds: of all products and convolutions on the batch, without what falls
        on padding.
      activations: numbers that these make.
      changed: the leaves that got smaller, with both shapes.
      as_it_is: whether the user's own function, given the smaller arrays, is the same
        program as ``apply_fn`` of the smaller network.
      folded: constants of dead units that were added to biases.
    """

    groups: tuple[GroupSize, ...]
    parameters: Change
    bytes: Change
    multiply_adds: Change
    activations: Change
    changed: tuple[tuple[LeafPath, tuple[int, ...], tuple[int, ...]], ...]
    as_it_is: bool
    folded: int

    def __str__(self) -> str:
        columns = [("kind", 9), ("units", 6), ("left", 6), ("parameters", 10)]
        columns += [("left", 10), ("multiply-adds", 13), ("left", 13)]
        rows = [
            (g.name, [g.kind, *g.units, *g.parameters, *g.multiply_adds])
            for g in self.groups
        ]
        lines = grid(columns, rows) if rows else []
        totals = ["parameters", "bytes", "multiply_adds", "activations"]
        for name in totals:
            one = getattr(self, name)
            text = f"{name.replace('_', '-')}: {one.before:,} -> {one.after:,}"
            lines.append(f"{text} ({_share(one)})")
        if self.folded:
            lines.append(f"constants of {self.folded} dead units are in the next bias")
        if self.as_it_is:
            lines.append("your own apply_fn takes the smaller arrays as they are")
        elif self.changed:
            lines.append("your own apply_fn needs other sizes, see report.changed:")
            lines += [fit(f"  {_sentence(one)}") for one in self.changed[:LISTED]]
            more = len(self.changed) - LISTED
            lines += [f"  … and {more} more"] if more > 0 else []
        return "\n".join(lines)


def _share(one: Change) -> str:
    return f"{one.share:.1%}" if one.before else "-"


def _sentence(changed: tuple[LeafPath, tuple[int, ...], tuple[int, ...]]) -> str:
    """A leaf that got smaller; of a kernel, what its module calls the last axis."""
    path, before, after = changed
    text = f"{path}: {list(before)} -> {list(after)}"
    module, _, name = path.rpartition("/")
    if name == "kernel" and before[-1] != after[-1]:
        text += f" ({module.rpartition('/')[2]}: features={after[-1]})"
    return text


def sizes_of(
    structure: Structure,
    kept: dict[str, np.ndarray],
    leaves: Sequence[Leaf],
    walked: Followed,
    marks: Marks,
) -> tuple[GroupSize, ...]:
    """What became of every group.

    Args:
      structure: the groups.
      kept: the units of each that are left.
      leaves: what is kept of every leaf.
      walked: the full program, whose axes were followed.
      marks: what is removed of it.
    """
    settled = walked.walk.ids.settle()
    number = np.full(walked.walk.ids.count, -1, np.int32)
    for k, group in enumerate(structure.groups):
        number[roots_of(walked, settled, group)] = k
    works = _works(walked, marks, settled, number, len(structure.groups))
    itemsize = [array.dtype.itemsize for array in walked.program.arrays]
    out = []
    for group, (before, after) in zip(structure.groups, works, strict=True):
        own = sorted({e.leaf for e in group.entries if e.leaf is not None})
        sizes = [(math.prod(leaves[k].shape), math.prod(leaves[k].small)) for k in own]
        counts = np.array(sizes, dtype=object)
        weights = np.array([itemsize[k] for k in own], dtype=object)
        out.append(
            GroupSize(
                name=group.name,
                kind=group.kind,
                units=Change(group.count, kept[group.name].shape[-1]),
                parameters=Change(*(int(n) for n in counts.sum(0))),
                bytes=Change(*(int(n) for n in weights @ counts)),
                multiply_adds=Change(before.multiply_adds, after.multiply_adds),
                activations=Change(before.activations, after.activations),
            )
        )
    return tuple(out)


def _works(
    walked: Followed, marks: Marks, settled: Settled, number: np.ndarray, count: int
) -> list[tuple[Work, Work]]:
    """By group, the work of the products in which it has a part, before and after."""
    walk = walked.walk
    out = [(Work(0, 0), Work(0, 0))] * count

    def groups_of(values: Sequence[Value]) -> set[int]:
        found = set()
        for value in values:
            for axis in value.axes:
                if axis.ids is not None:
                    for _, roots in parts_of(walked, settled, settled.root[axis.ids]):
                        found |= set(np.unique(number[roots[roots >= 0]]).tolist())
        return found - {-1}

    for seen in walked.products():
        eqn = seen.scope.closed.jaxpr.eqns[seen.at]
        given = [seen.scope.value(atom) for atom in eqn.invars]
        made = [seen.scope.values[var] for var in eqn.outvars]
        shapes = [shapes_of(seen, None), shapes_of(seen, marks)]
        times = walk.repeats(seen.scope.loop)
        adds = [times * multiply_adds(eqn, one) for one in shapes]
        units = [times * math.prod(one[-1]) for one in shapes]
        mine = groups_of(made)
        for k in groups_of(given) | mine:
            one, other = (
                Work(n, m if k in mine else 0) for n, m in zip(adds, units, strict=True)
            )
            out[k] = out[k][0] + one, out[k][1] + other
    return out


def report_of(
    program: Program,
    groups: tuple[GroupSize, ...],
    leaves: Sequence[Leaf],
    function: Any,
    *,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    folded: int,
) -> SizeReport:
    """The report.

    Args:
      program: the full network.
      groups: what became of every group.
      leaves: what is kept of every leaf.
      function: the function of the smaller network.
      apply_fn: the user's function.
      params: the smaller params.
      batch: the batch.
      folded: constants that were added to biases.
    """
    bytes_each = [array.dtype.itemsize for array in program.arrays]
    before = [math.prod(leaf.shape) for leaf in leaves]
    after = [math.prod(leaf.small) for leaf in leaves]
    full = work(program.closed.jaxpr)
    small = traced(function, params, batch)
    less = work(small.closed.jaxpr)
    return SizeReport(
        groups=groups,
        parameters=Change(sum(before), sum(after)),
        bytes=Change(*(int(np.dot(bytes_each, n)) for n in (before, after))),
        multiply_adds=Change(full.multiply_adds, less.multiply_adds),
        activations=Change(full.activations, less.activations),
        changed=tuple(
            (leaf.path, leaf.shape, leaf.small)
            for leaf in leaves
            if leaf.shape != leaf.small
        ),
        as_it_is=_takes(apply_fn, params, batch, small),
        folded=folded,
    )


def _takes(apply_fn: ApplyFn, params: Params, batch: Batch, small: Program) -> bool:
    """Whether the user's function of the smaller arrays is the same program."""
    try:
        own = traced(apply_fn, params, batch)
    except Exception:  # whatever it raises, it does not take them
        return False
    one, other = (jaxprs.flatten(p.closed)[0] for p in (own, small))
    return one == other
