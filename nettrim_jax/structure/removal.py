"""``shrink``: a network without some of its units, as smaller arrays and a function.

Knows programs, groups and cuts; chooses no units but dead ones.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nettrim_jax._trees import Filler, is_array, known
from nettrim_jax.results import ParamsError, made_here
from nettrim_jax.structure import cutting, dead
from nettrim_jax.structure.cutting import Leaf, Remove
from nettrim_jax.structure.evaluate import Marks, evaluate
from nettrim_jax.structure.groups import structure_of
from nettrim_jax.structure.marking import marks_of
from nettrim_jax.structure.program import Program, followed, traced
from nettrim_jax.structure.sizes import SizeReport, report_of, sizes_of
from nettrim_jax.typing import ApplyFn, Batch, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Small:
    """A network without some of its units.

    Attributes:
      params: the same tree, with smaller arrays.
      apply_fn: ``apply_fn(params, batch)`` of these params: the user's function, traced
        at the batch at hand and run with the sizes that are left.
      kept: by the name of each group, the units that are kept, ``[k]``, or
        ``[*steps, k]`` where every step of a loop has its own.
      report: sizes before and after; prints as a table.
    """

    params: Params
    apply_fn: ApplyFn
    kept: Mapping[str, np.ndarray]
    report: SizeReport
    leaves: tuple[Leaf, ...] = dataclasses.field(repr=False)
    keys: tuple[Any, ...] = dataclasses.field(repr=False)

    def cut(self, tree: Any) -> Any:
        """Any tree in which the params stand, cut as they were.

        For the states of optimisers, masks, averages and statistics. An array is cut if
        its path ends with the path of a leaf of the params, and it has its full shape.

        Args:
          tree: a tree like the params, or one in which such trees stand.

        Returns:
          The same tree with smaller arrays; what is not of the params stays.

        Raises:
          MethodError: nothing in it is of the params.
        """
        return cutting.cut_tree(tree, self.leaves, self.keys)


def shrink(
    params: Any,
    apply_fn: ApplyFn,
    batch: Batch,
    remove: Remove | None = None,
) -> Small:
    r"""Removes units from a network: smaller arrays, and a function that runs them.

    Let :math:`S(\theta)` be the arrays without the removed units, and
    :math:`Z(\theta)` the full ones with zeros in their place. Then

    .. math::
        f_{\text{small}}(S(\theta), x) = f(Z(\theta), x)

    for all :math:`\theta` and :math:`x`, so the derivatives agree as well. Custom
    derivatives and rematerialised calls are kept.

    Without ``remove``, what is dead goes: units whose weights into the next layers are
    all zero, and units that make a constant, as all weights into them are zero. If that
    constant is not zero it is added to the next bias, where there is one and no padding
    around the constant. Then :math:`f_{\text{small}}` is what the network was.

    Args:
      params: a pytree of arrays, or what ``prune`` returns; with ``remove`` shapes are
        enough.
      apply_fn: ``apply_fn(params, batch)``, traceable by JAX.
      batch: its second argument, or its shapes and dtypes.
      remove: by the name of a group of :func:`units`, the units to remove: indices
        ``[k]``, or booleans ``[count]``; with an axis per loop before, where the group
        has ``steps``. None removes what is dead.

    Returns:
      The smaller network: ``params``, ``apply_fn``, ``kept``, ``cut`` and ``report``.

    Raises:
      MethodError: there is no such group or unit, or none would be left.
      ParamsError: values are needed to see what is dead, and are not known.
      ApplyFnError, BatchError: as from :func:`units`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {
      ...     "hidden": jax.random.normal(keys[0], (20, 30), "float32"),
      ...     "output": jax.random.normal(keys[1], (30, 5), "float32"),
      ... }
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["hidden"]) @ params["output"]
      >>> x = jax.random.normal(keys[2], (8, 20), "float32")
      >>> small = nt.shrink(params, apply_fn, x, remove={"hidden": range(10)})
      >>> jax.tree.map(jnp.shape, small.params)
      {'hidden': (20, 20), 'output': (20, 5)}
      >>> zeros = {**params, "output": params["output"].at[:10].set(0)}
      >>> y, expected = small.apply_fn(small.params, x), apply_fn(zeros, x)
      >>> bool(jnp.allclose(y, expected, rtol=1e-5, atol=1e-5))
      True
    """
    params = pruned_params(params)
    program = traced(apply_fn, params, batch)
    folded = 0
    if remove is None:
        _require_values(program)
        found = dead.found(program, batch)
        walked = found.walked
        structure, removed, arrays = found.structure, found.remove, found.arrays
        folded = found.folded
    else:
        walked = followed(program)
        structure, arrays = structure_of(walked), program.arrays
        removed = cutting.chosen(structure, remove)
    shapes = [tuple(array.shape) for array in program.arrays]
    leaves = cutting.leaves(structure, removed, program.paths, shapes)
    marks = marks_of(walked, leaves)
    small = [leaf.cut(a) for leaf, a in zip(leaves, arrays, strict=True)]
    params = Filler(params)(small)
    if isinstance(apply_fn, SmallApply):  # the full program is to run once
        function, apply_fn = apply_fn.without(leaves), apply_fn.apply_fn
    else:
        function = SmallApply(apply_fn, leaves)
    kept = {
        group.name: left(group.count, removed.get(group.name))
        for group in structure.groups
    }
    report = report_of(
        program,
        sizes_of(structure, kept, leaves, walked, marks),
        leaves,
        function,
        apply_fn=apply_fn,
        params=params,
        batch=batch,
        folded=folded,
    )
    return Small(
        params=params,
        apply_fn=function,
        kept=kept,
        report=report,
        leaves=tuple(leaves),
        keys=cutting.keys_of(params),
    )


def pruned_params(given: Any) -> Params:
    """The params of what ``prune`` returns; params as they are."""
    return given.params if made_here(given, "params", "mask") else given


def left(count: int, gone: np.ndarray | None) -> np.ndarray:
    """The units that are left of so many."""
    if gone is None:
        return np.arange(count)
    rows = cutting.rows_of(gone)
    kept = [np.setdiff1d(np.arange(count), row) for row in rows]
    return np.stack(kept).reshape(*gone.shape[:-1], -1)


def _require_values(program: Program) -> None:
    for path, array in zip(program.paths, program.arrays, strict=True):
        if isinstance(array, jax.ShapeDtypeStruct) or not known(array):
            raise ParamsError(
                f"params: the values of {path} are not known, so it cannot be seen "
                "what is dead; give arrays, outside of jax.jit, or say what to remove: "
                "remove={name: units}"
            )


class SmallApply:
    """The function of a smaller network.

    Args:
      apply_fn: the function of the full one.
      leaves: what is kept of the leaves of its params.
    """

    def __init__(self, apply_fn: ApplyFn, leaves: Sequence[Leaf]):
        self.apply_fn, self._leaves = apply_fn, tuple(leaves)
        self._plans: dict[Any, Any] = {}

    def without(self, leaves: Sequence[Leaf]) -> "SmallApply":
        """The function of this network without more of its units.

        Args:
          leaves: what is kept of the leaves of its own params.
        """
        pairs = zip(self._leaves, leaves, strict=True)
        return SmallApply(self.apply_fn, [one.then(later) for one, later in pairs])

    def __call__(self, params: Params, batch: Batch) -> Any:
        """The network's results; its params are those that ``shrink`` returned."""
        given = [leaf for leaf in jax.tree.leaves(params) if is_array(leaf)]
        self._check(given)
        program, scope, marks = self._plan(params, batch, given)
        args = [*given, *jax.tree.leaves(batch)]
        return program.fill(evaluate(scope, marks, args))

    def _check(self, given: Sequence[Any]) -> None:
        if len(given) != len(self._leaves):
            raise ParamsError(
                f"params: expected the {len(self._leaves)} arrays of small.params, got "
                f"{len(given)}"
            )
        for leaf, array in zip(self._leaves, given, strict=True):
            if tuple(array.shape) != leaf.small:
                raise ParamsError(
                    f"params: {leaf.path} has the shape {tuple(array.shape)}; expected "
                    f"{leaf.small}, as in small.params; cut others with small.cut"
                )

    def _plan(self, params: Params, batch: Batch, given: Sequence[Any]) -> Any:
        """The full program at this batch, and what is removed of it; kept for next."""
        arrays = [
            jax.ShapeDtypeStruct(leaf.shape, array.dtype)
            for leaf, array in zip(self._leaves, given, strict=True)
        ]
        rest = jax.tree.map(_abstract, batch)
        fill = Filler(params)
        leaves, tree = jax.tree.flatten(rest)
        avals = (*((a.shape, a.dtype) for a in arrays), *map(_key, leaves))
        key = fill, tree, avals
        known_plan = self._plans.get(key)
        if known_plan is not None:
            return known_plan
        full: Any = arrays
        program = traced(self.apply_fn, fill(full), rest)
        found = followed(program)
        kept = [leaf.first for leaf in self._leaves]
        marks = Marks(found.walk, list(zip(found.leaves, kept, strict=True)))
        plan = program, found.scope, marks
        if all(map(known, program.closed.consts)):
            self._plans[key] = plan
        return plan


def _abstract(leaf: Any) -> Any:
    if not is_array(leaf):
        return leaf
    weak = bool(getattr(leaf, "weak_type", False))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=weak)


def _key(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.shape, leaf.dtype, leaf.weak_type
    return type(leaf)
