"""What a program is without some units: which indices go, and what it then costs.

Knows walks and cuts; runs nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nettrim_jax.results import MethodError
from nettrim_jax.structure import cutting
from nettrim_jax.structure.counting import multiply_adds
from nettrim_jax.structure.cutting import Leaf, rows_of
from nettrim_jax.structure.evaluate import Marks
from nettrim_jax.structure.program import Followed
from nettrim_jax.structure.records import Structure
from nettrim_jax.structure.registry import sizes
from nettrim_jax.structure.walk import Seen


def marks_of(walked: Followed, leaves: Sequence[Leaf]) -> Marks:
    """What is removed, at the first step of each loop.

    Raises:
      MethodError: a value would be empty, or of other sizes at each step.
    """
    rows = [
        [rows_of(k) if k is not None else None for k in leaf.kept] for leaf in leaves
    ]
    most = max([1, *(len(k) for one in rows for k in one if k is not None)])
    first, sizes = None, None
    for step in range(most):
        kept = [
            tuple(None if k is None else k[min(step, len(k) - 1)] for k in one)
            for one in rows
        ]
        marks = Marks(walked.walk, list(zip(walked.leaves, kept, strict=True)))
        counts = marks.counts(walked.scope)
        if first is None:
            first, sizes = marks, counts
        if 0 in counts:
            raise MethodError(
                "remove: of a part of an axis that `apply_fn` cuts out no index would "
                "be left; remove fewer units"
            )
        if counts != sizes:
            raise MethodError(
                "remove: the steps of a loop would be left with parts of other sizes; "
                "remove as many units of each part at every step"
            )
    assert first is not None
    return first


def shapes_of(seen: Seen, marks: Marks | None) -> list[Any]:
    """The shapes of the operands and the result of a product, without what goes."""
    eqn = seen.scope.closed.jaxpr.eqns[seen.at]
    given = [seen.scope.value(atom) for atom in eqn.invars]
    every = [*given, *(seen.scope.values[var] for var in eqn.outvars)]
    shapes = [var.aval.shape for var in (*eqn.invars, *eqn.outvars)]
    if marks is None:
        return shapes
    return [
        sizes(shape, marks.kept(value))
        for shape, value in zip(shapes, every, strict=True)
    ]


def parameters_left(
    walked: Followed, structure: Structure, removed: Mapping[str, np.ndarray]
) -> int:
    """The number of entries of all leaves without some units."""
    return sum(math.prod(leaf.small) for leaf in _leaves(walked, structure, removed))


def multiply_adds_left(
    walked: Followed, structure: Structure, removed: Mapping[str, np.ndarray]
) -> int:
    """The multiply-adds of all products without some units."""
    marks = marks_of(walked, _leaves(walked, structure, removed)) if removed else None
    total = 0
    for seen in walked.products():
        eqn = seen.scope.closed.jaxpr.eqns[seen.at]
        shapes = shapes_of(seen, marks)
        total += walked.walk.repeats(seen.scope.loop) * multiply_adds(eqn, shapes)
    return total


def _leaves(
    walked: Followed, structure: Structure, removed: Mapping[str, np.ndarray]
) -> list[Leaf]:
    shapes = [tuple(array.shape) for array in walked.program.arrays]
    return cutting.leaves(structure, removed, walked.program.paths, shapes)
