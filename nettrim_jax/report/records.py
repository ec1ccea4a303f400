"""The report of a pruning: one entry per site, totals, and the leaves left alone.

Records are pytrees of arrays with static names, so ``jit`` and ``vmap`` return them.
Knows numbers; knows no network.
"""

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from nettrim_jax import results
from nettrim_jax._trees import STATIC
from nettrim_jax.report import tables, text
from nettrim_jax.report.figures import UNKNOWN, register_figures
from nettrim_jax.report.plain_data import (
    array,
    left,
    pairs,
    plain,
    reading,
    require_known,
)
from nettrim_jax.report.search import Margin, SearchStep, Split
from nettrim_jax.typing import Array, LeafPath

# that may be missing
FIGURES = ("deviation", "bound", "tight_bound", "frobenius_bound")


@dataclasses.dataclass(frozen=True)
class SiteInfo:
    """One site as it was found, before anything is solved.

    Attributes:
      path: path of its leaf, ``"params/Dense_0/kernel"``.
      kind: ``"dense"`` or ``"conv"``.
      response: ``"relu"``, ``"clip"`` or ``"linear"``.
      shape: ``(lanes, n, d_in, d_out)`` of the folded problem, with all rows that the
        batch gives.
      size: number of weights.
    """

    path: LeafPath
    kind: str
    response: str
    shape: tuple[int, int, int, int]
    size: int


@dataclasses.dataclass(frozen=True)
class Listing:
    """The sites that would be pruned, and the rest; ``print`` it for a table.

    Attributes:
      sites: one entry per site, in order of execution.
      skipped: ``(path, reason)`` of every leaf of two or more dimensions left alone.
      notes: what else was found, such as signs that the network trains.
      matrices: of each site, where its matrices lie in the leaves, for
        :func:`nettrim_jax.train_sparse`; not in plain data, so empty when read back.
    """

    sites: tuple[SiteInfo, ...]
    skipped: tuple[tuple[LeafPath, str], ...]
    notes: tuple[str, ...] = ()
    matrices: tuple[Any, ...] = dataclasses.field(default=(), repr=False, compare=False)

    @property
    def size(self) -> int:
        """Number of weights of all sites."""
        return sum(site.size for site in self.sites)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for ``json.dumps``."""
        return {
            "sites": [
                dataclasses.asdict(site) | {"shape": list(site.shape)}
                for site in self.sites
            ],
            "skipped": left(self.skipped),
            "notes": list(self.notes),
            "size": self.size,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Listing":
        """The listing of which :meth:`to_dict` made this.

        Raises:
          NetTrimError: the data are of another kind.
        """
        with reading("Listing", data):
            sites = tuple(
                SiteInfo(**{**site, "shape": tuple(site["shape"])})
                for site in data["sites"]
            )
            return cls(sites, pairs(data["skipped"]), tuple(data.get("notes", ())))

    def __str__(self) -> str:
        columns = (("kind", 5), ("response", 8), ("lanes", 6), ("rows", 9))
        columns += (("d_in", 6), ("d_out", 6), ("size", 9))
        rows = [
            (site.path, [site.kind, site.response, *site.shape, site.size])
            for site in self.sites
        ]
        rows.append(("all", ["", "", "", "", "", "", self.size]))
        lines = [*tables.grid(columns, rows), *tables.notes(self.notes)]
        return "\n".join([*lines, *tables.left_alone(self.skipped)])


def _none() -> Any:
    return np.zeros((), np.int32)


@register_figures
@dataclasses.dataclass(frozen=True)
class SiteReport:
    """One site after a pruning. Under ``vmap`` the arrays have a leading mapped axis.

    Figures that a method has not, or that nobody asked for, are one NaN, which is no
    leaf of the record as a pytree: ``vmap`` does not map it.

    Attributes:
      path: path of its leaf, ``"params/Dense_0/kernel"``.
      kind: ``"dense"`` or ``"conv"``.
      response: ``"relu"``, ``"clip"`` or ``"linear"``.
      shape: ``(lanes, n, d_in, d_out)`` of the folded problem; ``n`` without the
        held-out rows but with padding, ``d_in`` without a bias.
      size: number of weights.
      nonzeros: number of weights that are not zero.
      epsilon: the budget, relative to the norm of the layer's trained response; like
        ``gap`` and ``violation``, NaN where a method has none.
      error: relative Frobenius error of the layer's output (after the ReLU where there
        is one) on the rows that the solver used.
      held_out_error: the same on the held-out rows; NaN if there are none.
      live_inputs: number of inputs, over all lanes, that are non-zero on some row.
      idle_lanes: number of lanes that no row reached. Such an expert stays as trained
        under all methods that need rows, and a pattern's number is that of the others.
      bare_units: number of units, over all lanes, that have no weight left; their
        response is their bias, whatever their inputs.
      bare_inputs: number of inputs, or channels of a convolution, with no weight left.
      result: the worst lane's code, see :mod:`nettrim_jax.results`.
      steps: the slowest lane's steps.
      gap: the worst lane's relative duality gap.
      violation: the worst lane's relative violation.
      downstream: share of the minimised loss that weighs errors by their effect on the
        network's output (:class:`nettrim_jax.Reconstruct`).
      limits: the lower and the upper limit between which its response passes; None
        where there is none. Those of a ReLU are 0 and None, of ReLU6 0 and 6.
      before: number of weights that were not zero in the params as given.
      kept: number of weights that the mask keeps. It is more than ``nonzeros`` if a
        pattern keeps weights that are zero, as all are of a layer that was never
        trained.
    """

    path: LeafPath = dataclasses.field(metadata=STATIC)
    kind: str = dataclasses.field(metadata=STATIC)
    response: str = dataclasses.field(metadata=STATIC)
    shape: tuple[int, int, int, int] = dataclasses.field(metadata=STATIC)
    size: int = dataclasses.field(metadata=STATIC)
    nonzeros: Array
    epsilon: Array
    error: Array
    held_out_error: Array
    live_inputs: Array
    bare_units: Array
    bare_inputs: Array
    result: Array
    steps: Array
    gap: Array
    violation: Array
    downstream: Array
    limits: tuple[float | None, float | None] = dataclasses.field(
        default=(None, None), metadata=STATIC
    )
    idle_lanes: Array = dataclasses.field(default_factory=_none)
    before: Array = dataclasses.field(default_factory=_none)
    kept: Array = dataclasses.field(default_factory=_none)

    @property
    def sparsity(self) -> Array:
        """Share of the weights that are zero."""
        return 1 - self.nonzeros / self.size

    @property
    def message(self) -> str:
        """The meaning of the result code."""
        return results.message(results.worst(self.result))


@register_figures
@dataclasses.dataclass(frozen=True)
class Report:
    """The report of a pruning; ``print`` it for a table.

    Attributes:
      sites: one entry per site, in order of execution.
      skipped: ``(path, reason)`` of every leaf of two or more dimensions left alone.
      deviation: relative change of the network's output on the batch (Frobenius).
      bound: upper bound on it by the theorems, from the layers' own errors on the batch
        and their norms; NaN if it was not asked for or stops on the way.
      tight_bound: a bound that is no larger; it also follows single entries, and each
        layer's error through the next layer.
      frobenius_bound: the bound of Dong, Chen and Pan (2017) as published: with the
        Frobenius norms of the layers, and their errors before the ReLU. ``bound`` is
        the same with their norms as operators, and their errors behind the ReLU.
      bound_stop: the operation without a known Lipschitz constant, where the bound
        stops; empty if it does not; None if it was not asked for.
      budget: the largest allowed ``measure``; like the next four, only where a method
        asked for a budget.
      checked: the ``measure`` on rows that no solve and no search used.
      measure: ``"deviation"`` of the output or ``"drop"`` of the metric.
      margin: what is kept of the budget for rows that were not seen, and with how many
        rows that would be half.
      search: the networks that were measured to find this one, which is the last.
      split: how the layers' numbers of weights were chosen under ``scope="network"``;
        None if nothing was measured for that.
      notes: what else was found, such as signs that the network trains.
    """

    sites: tuple[SiteReport, ...]
    skipped: tuple[tuple[LeafPath, str], ...] = dataclasses.field(metadata=STATIC)
    deviation: Array
    bound: Array = UNKNOWN
    tight_bound: Array = UNKNOWN
    frobenius_bound: Array = UNKNOWN
    bound_stop: str | None = dataclasses.field(default=None, metadata=STATIC)
    budget: Array | None = None
    checked: Array | None = None
    measure: str | None = dataclasses.field(default=None, metadata=STATIC)
    margin: Margin | None = None
    search: tuple[SearchStep, ...] = ()
    split: Split | None = None
    notes: tuple[str, ...] = dataclasses.field(default=(), metadata=STATIC)

    @property
    def size(self) -> int:
        """Number of weights of all pruned sites."""
        return sum(site.size for site in self.sites)

    @property
    def nonzeros(self) -> Array:
        """Number of these weights that are left."""
        return functools.reduce(
            operator.add,
            (site.nonzeros for site in self.sites),
            jnp.zeros((), jnp.int32),
        )

    @property
    def sparsity(self) -> Array:
        """Share of these weights that are zero."""
        return (self.size - self.nonzeros) / max(self.size, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``; NaN and infinity become ``None``.

        Raises:
          NetTrimError: values are being traced.
        """
        require_known(self)
        totals = ("size", "nonzeros", "sparsity", *FIGURES, "bound_stop")
        return {
            "sites": [_site_dict(site) for site in self.sites],
            "skipped": left(self.skipped),
            "notes": list(self.notes),
            **{name: plain(getattr(self, name)) for name in totals},
            "budget": self._budgeted(),
            "split": self.split
            and {name: plain(value) for name, value in vars(self.split).items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Report":
        """The report of which :meth:`to_dict` made this; ``None`` becomes NaN.

        Example:
          >>> import json, jax.numpy as jnp, nettrim_jax as nt
          >>> w, x = jnp.eye(4), jnp.ones((8, 4))
          >>> pruned = nt.prune(w, lambda w, x: x @ w, x, method=nt.NetTrim(0.1))
          >>> text = json.dumps(pruned.report.to_dict())
          >>> again = nt.Report.from_dict(json.loads(text))
          >>> str(again) == str(pruned.report)
          True

        Raises:
          NetTrimError: the data are of another kind.
        """
        with reading("Report", data):
            found = data["budget"] or {}
            return cls(
                sites=tuple(map(_site, data["sites"])),
                skipped=pairs(data["skipped"]),
                **{name: array(data[name]) for name in FIGURES},
                bound_stop=data["bound_stop"],
                budget=array(found["most"]) if found else None,
                checked=array(found["checked"]) if found else None,
                measure=found.get("measure"),
                margin=_margin(found.get("margin")),
                search=tuple(
                    SearchStep(**{name: array(a) for name, a in step.items()})
                    for step in found.get("search", ())
                ),
                split=data["split"]
                and Split(
                    array(data["split"]["deviation"]),
                    array(data["split"]["equal"]),
                    data["split"]["tried"],
                ),
                notes=tuple(data.get("notes", ())),
            )

    def _budgeted(self) -> dict[str, Any] | None:
        if self.budget is None:
            return None
        return {
            "measure": self.measure,
            "most": plain(self.budget),
            "checked": plain(self.checked),
            "margin": self.margin
            and {name: plain(value) for name, value in vars(self.margin).items()},
            "search": [
                {name: plain(value) for name, value in vars(step).items()}
                for step in self.search
            ],
        }

    def __str__(self) -> str:
        try:
            return text.table(self)
        except TypeError:  # arrays under a trace, or with a mapped axis
            return f"Report of {len(self.sites)} layers, values not known or mapped"


def _site_dict(site: SiteReport) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(site)]
    out = {name: plain(getattr(site, name)) for name in [*names, "sparsity"]}
    worst = int(np.max(site.result))
    return {**out, "result": results.NAMES[worst], "message": results.message(worst)}


def _margin(data: Mapping[str, Any] | None) -> Margin | None:
    if data is None:
        return None
    figures = {name: array(data[name]) for name in ("size", "halved")}
    return Margin(**{**data, **figures})


def _site(data: Mapping[str, Any]) -> SiteReport:
    fields = {}
    for field in dataclasses.fields(SiteReport):
        value = data[field.name]
        if field.name == "result":
            codes = {name: code for code, name in results.NAMES.items()}
            value = np.asarray(codes[value], np.int32)
        elif not field.metadata.get("static"):
            value = array(value)
        elif isinstance(value, list):
            value = tuple(value)
        fields[field.name] = value
    return SiteReport(**fields)
