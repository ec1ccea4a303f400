"""What a pruning did, measured: one entry per layer, totals, and what was left.

Records are pytrees of arrays with static names, so a report comes out of ``jit``
and ``vmap``. Knows numbers only.
"""

import dataclasses
import functools
import operator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax import results
from nettrim_jax.typing import Array, Path

STATIC = {"static": True}


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SiteReport:
    """One layer. Under ``vmap`` the arrays have the mapped axis in front.

    Attributes:
      path: where its weights are, ``"params/Dense_0/kernel"``.
      kind: ``"dense"`` or ``"conv"``.
      response: ``"relu"`` or ``"linear"``.
      shape: of the folded problem, ``(lanes, n, d_in, d_out)``; ``n`` without the
        held-out rows, ``d_in`` without a bias.
      size: how many weights.
      nonzeros: how many are left.
      epsilon: the budget, relative to the norm of the layer's trained response.
      error: relative Frobenius error of what follows the layer (after the ReLU
        where there is one) on the rows that the solver saw.
      held_out_error: the same on rows that it did not see; NaN if there are none.
      result: the worst lane's code, see :mod:`nettrim_jax.results`.
      steps: the slowest lane's steps.
      gap: the worst lane's relative duality gap.
      violation: the worst lane's relative violation.
    """

    path: Path = dataclasses.field(metadata=STATIC)
    kind: str = dataclasses.field(metadata=STATIC)
    response: str = dataclasses.field(metadata=STATIC)
    shape: tuple[int, int, int, int] = dataclasses.field(metadata=STATIC)
    size: int = dataclasses.field(metadata=STATIC)
    nonzeros: Array
    epsilon: Array
    error: Array
    held_out_error: Array
    result: Array
    steps: Array
    gap: Array
    violation: Array

    @property
    def sparsity(self) -> Array:
        """Share of the weights that are zero."""
        return 1 - self.nonzeros / self.size

    @property
    def message(self) -> str:
        """What the result code means."""
        return results.message(int(np.max(self.result)))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Report:
    """The whole network; ``print`` it for a table.

    Attributes:
      sites: one per layer, in order of execution.
      skipped: ``(path, reason)`` of every leaf of two or more dimensions left alone.
      deviation: relative change of the network's output on the batch (Frobenius).
    """

    sites: tuple[SiteReport, ...]
    skipped: tuple[tuple[Path, str], ...] = dataclasses.field(metadata=STATIC)
    deviation: Array

    @property
    def size(self) -> int:
        """How many weights the pruned layers have."""
        return sum(site.size for site in self.sites)

    @property
    def nonzeros(self) -> Array:
        """How many of them are left."""
        return functools.reduce(
            operator.add,
            (site.nonzeros for site in self.sites),
            jnp.zeros((), jnp.int32),
        )

    @property
    def sparsity(self) -> Array:
        """Share of them that are zero."""
        return 1 - self.nonzeros / max(self.size, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for ``json.dumps`` (a NaN becomes ``None``)."""
        totals = ("size", "nonzeros", "sparsity", "deviation")
        return {
            "sites": [_site_dict(site) for site in self.sites],
            "skipped": [{"path": p, "reason": reason} for p, reason in self.skipped],
            **{name: _plain(getattr(self, name)) for name in totals},
        }

    def __str__(self) -> str:
        try:
            return _table(self)
        except TypeError:  # arrays under a trace, or with a mapped axis
            return f"Report of {len(self.sites)} layers, values not known or mapped"


_COLUMNS = (
    ("response", 8),
    ("size", 9),
    ("left", 9),
    ("zeros", 6),
    ("epsilon", 7),
    ("error", 6),
    ("held-out", 8),
    ("steps", 5),
    ("gap", 7),
)


def _site_dict(site: SiteReport) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(site)]
    out = {name: _plain(getattr(site, name)) for name in [*names, "sparsity"]}
    worst = int(np.max(site.result))
    return {**out, "result": results.NAMES[worst], "message": results.message(worst)}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return list(value)
    array = np.asarray(value)
    flat = [_number(x) for x in array.ravel().tolist()]
    return flat[0] if array.ndim == 0 else flat


def _number(x: float) -> float | None:
    return None if x != x else x


def _table(report: Report) -> str:
    width = 100 - sum(w + 1 for _, w in _COLUMNS)
    longest = max((len(site.path) for site in report.sites), default=0)
    width = max(min(width, longest), len("layer"))
    lines = [_line("layer", width, [name for name, _ in _COLUMNS])]
    notes = []
    for site in report.sites:
        path = site.path if len(site.path) <= width else "…" + site.path[1 - width :]
        lines.append(_line(path, width, _cells(site)))
        if int(site.result) != results.CONVERGED:
            notes.append(f"{site.path}: {site.message}")
    total = ["", f"{report.size}", f"{int(report.nonzeros)}"]
    total += [f"{100 * float(report.sparsity):.1f}%"]
    lines.append(_line("all", width, total + [""] * 5))
    lines.append(
        f"output moved by {float(report.deviation):.4f} of its norm on the batch"
    )
    lines += notes
    lines += [_fit(f"left alone: {path}: {reason}") for path, reason in report.skipped]
    return "\n".join(line.rstrip() for line in lines)


def _cells(site: SiteReport) -> list[str]:
    held_out = float(site.held_out_error)
    return [
        site.response,
        f"{site.size}",
        f"{int(site.nonzeros)}",
        f"{100 * float(site.sparsity):.1f}%",
        f"{float(site.epsilon):.4g}",
        f"{float(site.error):.4f}",
        "-" if held_out != held_out else f"{held_out:.4f}",
        f"{int(site.steps)}",
        f"{float(site.gap):.1e}",
    ]


def _line(path: str, width: int, cells: list[str]) -> str:
    columns = zip(cells, _COLUMNS, strict=True)
    return path.ljust(width) + "".join(f" {cell:>{w}}" for cell, (_, w) in columns)


def _fit(text: str) -> str:
    return text if len(text) <= 100 else text[:99] + "…"
