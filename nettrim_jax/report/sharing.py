"""What was done so that weights share few values.

Knows numbers; knows no network.
"""

import dataclasses
from typing import Any

from jax.tree_util import register_dataclass

from nettrim_jax import results
from nettrim_jax._trees import STATIC
from nettrim_jax.report import tables
from nettrim_jax.report.figures import UNKNOWN, register_figures
from nettrim_jax.report.plain_data import left, plain, require_known
from nettrim_jax.typing import Array, LeafPath


@register_figures
@dataclasses.dataclass(frozen=True)
class SharedSite:
    """One site of which the weights share values.

    Attributes:
      path: path of its leaf, ``"params/Dense_0/kernel"``.
      bits: number of bits of a code.
      size: number of weights.
      nonzeros: number of weights that are not zero.
      values: number of different values beside zero, of the matrix, or unit, with the
        most; of a layer that failed those with which it stays.
      error: relative change of the layer's output (after the ReLU where there is one)
        from that of the pruned network, on the rows that were used.
      held_out_error: the same on the held-out rows; NaN if there are none.
      result: the worst lane's code, see :mod:`nettrim_jax.results`.
    """

    path: LeafPath = dataclasses.field(metadata=STATIC)
    bits: int = dataclasses.field(metadata=STATIC)
    size: int = dataclasses.field(metadata=STATIC)
    nonzeros: Array
    values: Array
    error: Array
    result: Array
    held_out_error: Array = UNKNOWN


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ShareReport:
    """What sharing did to a network; ``print`` it for a table.

    Attributes:
      sites: one entry per site, in order of execution.
      skipped: ``(path, reason)`` of every leaf of two or more dimensions left alone.
      before: relative change of the network's output from the trained one on the batch
        (the first one of a loader), by the pruning alone.
      deviation: the same with shared values.
      moved: relative change of the output from that of the pruned network.
      bytes: what the file of :func:`nettrim_jax.save` takes, if there was a budget.
      budget: what it may take; None if there was no budget.
    """

    sites: tuple[SharedSite, ...]
    skipped: tuple[tuple[LeafPath, str], ...] = dataclasses.field(metadata=STATIC)
    before: Array
    deviation: Array
    moved: Array
    bytes: int | None = dataclasses.field(default=None, metadata=STATIC)
    budget: int | None = dataclasses.field(default=None, metadata=STATIC)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``; NaN and infinity become ``None``.

        Raises:
          NetTrimError: values are being traced.
        """
        require_known(self)
        sites = [
            {name: plain(value) for name, value in vars(site).items()}
            | {"result": results.NAMES[int(site.result)]}
            for site in self.sites
        ]
        moves = ("before", "deviation", "moved")
        figures = {name: plain(getattr(self, name)) for name in moves}
        figures |= {"bytes": self.bytes, "budget": self.budget}
        return {"sites": sites, "skipped": left(self.skipped), **figures}

    def __str__(self) -> str:
        try:
            return "\n".join(self._lines())
        except TypeError:  # arrays under a trace, or with a mapped axis
            return (
                f"ShareReport of {len(self.sites)} layers, values not known or mapped"
            )

    def _lines(self) -> list[str]:
        columns = (("bits", 4), ("values", 6), ("size", 9), ("nonzeros", 9))
        columns += (("error", 7), ("held out", 8), ("result", 8))
        rows = []
        for site in self.sites:
            counts = (site.bits, int(site.values), site.size, int(site.nonzeros))
            errors = (f"{float(site.error):.4f}", f"{float(site.held_out_error):.4f}")
            errors = tuple(text.replace("nan", "-") for text in errors)
            rows.append(
                (site.path, [*counts, *errors, results.NAMES[int(site.result)]])
            )
        change = f"{float(self.before):.4f} -> {float(self.deviation):.4f}"
        file = []
        if self.bytes is not None and self.budget is not None:
            file = [f"file of {self.bytes:,} bytes, of at most {self.budget:,}"]
        return [
            *tables.grid(columns, rows),
            *file,
            f"deviation of the output from the trained one: {change}; "
            f"from the pruned one: {float(self.moved):.4f}",
            *tables.left_alone(self.skipped),
        ]
