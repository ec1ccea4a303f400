"""What ``trim`` returns: records of its rounds that print as a table.

Knows groups and cuts; chooses and removes nothing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from nettrim_jax._trees import is_array, path_of
from nettrim_jax.report.tables import fit, grid
from nettrim_jax.results import ParamsError
from nettrim_jax.structure import cutting
from nettrim_jax.structure.counting import work
from nettrim_jax.structure.cutting import Leaf
from nettrim_jax.structure.groups import structure_of
from nettrim_jax.structure.program import followed, traced
from nettrim_jax.structure.records import Structure
from nettrim_jax.structure.removal import Small
from nettrim_jax.structure.sizes import Change
from nettrim_jax.typing import ApplyFn, Batch, LeafPath, Params

LISTED = 20  # groups that a printed table names


@dataclasses.dataclass(frozen=True, eq=False)
class Round:
    """A network after a round of :func:`nettrim_jax.trim`.

    What is said of units and sizes is relative to the network that was given, which is
    round 0.

    Attributes:
      number: of the round, from 1.
      kept: by the name of each group of the given network, its units that are kept,
        ``[k]``, or ``[*steps, k]`` where every step of a loop has its own.
      parameters: entries of all leaves, in round 0 and now.
      multiply_adds: of all products and convolutions on the batch, in round 0 and now.
      deviation: the relative change of the network's output by what this round pruned,
        before it was trained again.
      metric_before: the metric before this round's training; None without one.
      metric: the metric behind it.
      params: the smaller params.
      apply_fn: the function of these.
      structure: the groups of the given network.
    """

    number: int
    kept: Mapping[str, np.ndarray]
    parameters: Change
    multiply_adds: Change
    deviation: float
    metric_before: float | None
    metric: float | None
    params: Params = dataclasses.field(repr=False)
    apply_fn: ApplyFn = dataclasses.field(repr=False)
    structure: Structure = dataclasses.field(repr=False)
    leaves: tuple[Leaf, ...] = dataclasses.field(repr=False)
    keys: tuple[Any, ...] = dataclasses.field(repr=False)
    earlier: tuple["Round", ...] = dataclasses.field(repr=False, default=())

    @property
    def units(self) -> dict[str, int]:
        """By the name of each group, how many units are left."""
        return {name: kept.shape[-1] for name, kept in self.kept.items()}

    def cut(self, tree: Any) -> Any:
        """Any tree in which the given params stand, cut to the sizes of this round.

        As :meth:`nettrim_jax.structure.Small.cut`, over all rounds so far.

        Args:
          tree: a tree like the given params, or one in which such trees stand.

        Returns:
          The same tree with smaller arrays; what is not of the params stays.

        Raises:
          MethodError: nothing in it is of the params.
        """
        return cutting.cut_tree(tree, self.leaves, self.keys)


@dataclasses.dataclass(frozen=True, eq=False)
class Trimmed:
    """What :func:`nettrim_jax.trim` returns; prints as a table per round.

    Attributes:
      start: the network as given, as round 0.
      rounds: all rounds, from the first one.
      stop: why there is no further one.
    """

    start: Round
    rounds: tuple[Round, ...]
    stop: str

    @property
    def last(self) -> Round:
        """The last round; round 0 if there was none."""
        return (self.start, *self.rounds)[-1]

    @property
    def params(self) -> Params:
        """The params of the last round."""
        return self.last.params

    @property
    def apply_fn(self) -> ApplyFn:
        """The function of the last round."""
        return self.last.apply_fn

    @property
    def kept(self) -> Mapping[str, np.ndarray]:
        """The units of the given network that are left; see ``Round.kept``."""
        return self.last.kept

    def cut(self, tree: Any) -> Any:
        """Any tree in which the given params stand, cut as they were; see ``Round``."""
        return self.last.cut(tree)

    def __str__(self) -> str:
        every = (self.start, *self.rounds)
        measured = any(one.metric is not None for one in every)
        columns = [("units", 9), ("parameters", 13), ("left", 6)]
        columns += [("multiply-adds", 17), ("left", 6), ("moved", 8)]
        columns += [("untrained", 10), ("metric", 10)] if measured else []
        rows = [(str(one.number), _cells(one)[: len(columns)]) for one in every]
        lines = grid(columns, rows, first="round")
        groups = self.start.structure.groups
        for group in groups[:LISTED]:
            counts = " -> ".join(str(one.units[group.name]) for one in every)
            lines.append(fit(f"{group.name}, {group.kind}: {counts}", middle=True))
        more = len(groups) - LISTED
        lines += [f"… and {more} more groups"] if more > 0 else []
        return "\n".join([*lines, fit(f"stopped: {self.stop}")])


def _cells(one: Round) -> list[str]:
    cells = [f"{sum(one.units.values()):,}"]
    for change in (one.parameters, one.multiply_adds):
        cells += [f"{change.after:,}", f"{change.share:.1%}"]
    cells.append(f"{one.deviation:.3g}" if one.number else "")
    for value in (one.metric_before if one.number else None, one.metric):
        cells.append("" if value is None else f"{value:.4g}")
    return cells


def given(
    params: Params, apply_fn: ApplyFn, batch: Batch, metric: float | None
) -> Round:
    """A network as round 0, in which nothing is removed."""
    program = traced(apply_fn, params, batch)
    structure = structure_of(followed(program))
    shapes = [tuple(array.shape) for array in program.arrays]
    leaves = tuple(cutting.leaves(structure, {}, program.paths, shapes))
    size = sum(int(np.prod(shape)) for shape in shapes)
    adds = work(program.closed.jaxpr).multiply_adds
    return Round(
        number=0,
        kept={g.name: cutting.units_left(g, leaves) for g in structure.groups},
        parameters=Change(size, size),
        multiply_adds=Change(adds, adds),
        deviation=0.0,
        metric_before=metric,
        metric=metric,
        params=params,
        apply_fn=apply_fn,
        structure=structure,
        leaves=leaves,
        keys=cutting.keys_of(params),
    )


def following(
    last: Round, small: Small, params: Params, **measured: float | None
) -> Round:
    """The round behind another one.

    Args:
      last: the round before.
      small: its network without what this round removed.
      params: those of ``small``, trained again.
      **measured: ``deviation``, ``metric_before`` and ``metric``.
    """
    pairs = zip(last.leaves, small.leaves, strict=True)
    leaves = tuple(one.then(later) for one, later in pairs)
    groups = last.structure.groups
    report = small.report
    return dataclasses.replace(
        last,
        number=last.number + 1,
        kept={group.name: cutting.units_left(group, leaves) for group in groups},
        parameters=Change(last.parameters.before, report.parameters.after),
        multiply_adds=Change(last.multiply_adds.before, report.multiply_adds.after),
        params=params,
        apply_fn=small.apply_fn,
        leaves=leaves,
        earlier=(*last.earlier, last),
        **measured,
    )


def require_like(params: Params, like: Params, what: str, advice: str) -> None:
    """Raises ParamsError, with the path, unless arrays have these shapes and dtypes.

    Args:
      params: what was given.
      like: what it has to be like.
      what: gave it.
      advice: what to do.
    """
    got, wanted = (_arrays(tree) for tree in (params, like))
    lost = [path for path in wanted if path not in got]
    new = [path for path in got if path not in wanted]
    if list(got) != list(wanted):
        said = [f"{', '.join(lost[:4])} missing"] if lost else []
        said += [f"{', '.join(new[:4])} new"] if new else []
        raise ParamsError(
            f"{what} a tree with other arrays ({type(params).__name__}): "
            f"{'; '.join(said) or 'in another order'}; expected that of the "
            f"{len(wanted)} arrays of the smaller network; {advice}"
        )
    for path, (shape, dtype) in wanted.items():
        if got[path] != (shape, dtype):
            other, kind = got[path]
            raise ParamsError(
                f"{what} {path} as {kind} {list(other)}; expected {dtype} "
                f"{list(shape)}; {advice}"
            )


def _arrays(tree: Any) -> dict[LeafPath, tuple[tuple[int, ...], Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        path_of(keys) or "params": (tuple(leaf.shape), leaf.dtype)
        for keys, leaf in leaves
        if is_array(leaf)
    }
