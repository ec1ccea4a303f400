"""The text of a report: a table of the layers, and lines below it.

Knows the fields of a report; knows no network.
"""

import math
from typing import Any

from nettrim_jax import results
from nettrim_jax.report import tables
from nettrim_jax.typing import Array

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


def table(report: Any) -> str:
    """The table of a report, with lines for what else is to say."""
    rows = [(site.path, _cells(site)) for site in report.sites]
    notes = [
        f"{site.path}: {site.message}"
        for site in report.sites
        if int(site.result) not in (results.CONVERGED, results.DIRECT)
    ]
    notes += [
        f"{site.path}: its inputs are zero on every row, so no weight was needed"
        for site in report.sites
        if int(site.live_inputs) == 0
    ]
    notes += [
        f"{site.path}: {idle} of {site.shape[0]} lanes saw no row"
        for site in report.sites
        if site.kind == "dense" and 0 < (idle := int(site.idle_lanes)) < site.shape[0]
    ]
    notes += [
        tables.fit(f"removable, no weight is left: {' and '.join(bare)} of {site.path}")
        for site in report.sites
        if (bare := _bare(site))
    ]
    notes += [
        tables.fit(
            f"{site.path}: no more than {int(site.before)} of its {site.size} weights "
            "were left before, and none was removed"
        )
        for site in report.sites
        if 0 < int(site.before) == int(site.nonzeros) < site.size
    ]
    notes += [
        tables.fit(
            f"{site.path}: the mask keeps {int(site.kept)} weights, of which "
            f"{int(site.kept) - int(site.nonzeros)} are zero"
        )
        for site in report.sites
        if int(site.kept) > int(site.nonzeros)
    ]
    total = ["", f"{report.size}", f"{int(report.nonzeros)}"]
    total += [f"{100 * float(report.sparsity):.1f}%"]
    rows.append(("all", total + [""] * 5))
    moved = f"output moved by {float(report.deviation):.4f} of its norm on the batch"
    lines = [*tables.grid(_COLUMNS, rows), moved, *_bound_lines(report)]
    lines += [
        *_budget_lines(report),
        *_split_lines(report),
        *notes,
        *tables.notes(report.notes),
        *tables.left_alone(report.skipped),
    ]
    return "\n".join(lines)


def _bound_lines(report: Any) -> list[str]:
    if report.bound_stop is None:
        return []
    if report.bound_stop:
        return [tables.fit(f"no bound on that: it stops at {report.bound_stop}")]
    bound, tight = (f"{float(a):.4g}" for a in (report.bound, report.tight_bound))
    return [f"at most {bound} by the theorems, {tight} by the tighter bound"]


def _bare(site: Any) -> list[str]:
    counts = (int(site.bare_units), "unit"), (int(site.bare_inputs), "input")
    if site.kind == "conv":
        counts = (counts[0][0], "filter"), (counts[1][0], "channel")
    return [f"{n} {name}{'s' * (n > 1)}" for n, name in counts if n]


def _split_lines(report: Any) -> list[str]:
    if report.split is None:
        return []
    split, equal = float(report.split.deviation), float(report.split.equal)
    if equal <= split:
        return [
            f"the same share in every layer: {equal:.4g} on rows that chose nothing; "
            f"the best of {report.split.tried} others {split:.4g}"
        ]
    return [
        f"shares per layer: {split:.4g} on rows that chose nothing, {equal:.4g} with "
        f"the same in all; {report.split.tried} networks tried"
    ]


def _budget_lines(report: Any) -> list[str]:
    if report.budget is None or report.checked is None:
        return []
    most, checked = float(report.budget), float(report.checked)
    return [
        f"{report.measure} of {checked:.4g} on rows that steered nothing, "
        f"{'within' if checked <= most else 'OVER'} the budget of {most:.4g}; "
        f"{len(report.search)} networks tried",
        *_margin_lines(report),
    ]


def _margin_lines(report: Any) -> list[str]:
    margin = report.margin
    if margin is None:
        return []
    by = f"as {margin.steering} of {margin.given} {margin.unit} steered"
    size, halved = float(margin.size), float(margin.halved)
    if math.isnan(halved):
        return [f"margin for rows not seen 0, {by} and do not differ"]
    about = float(f"{halved:.2g}")
    return [
        f"margin for rows not seen {size:.3g}, {by}; about {about:.0f} would halve it"
    ]


def _cells(site: Any) -> list[str]:
    direct = int(site.result) == results.DIRECT
    return [
        site.response,
        f"{site.size}",
        f"{int(site.nonzeros)}",
        f"{100 * float(site.sparsity):.1f}%",
        _figure(site.epsilon, ".4g"),
        f"{float(site.error):.4f}",
        _figure(site.held_out_error, ".4f"),
        "-" if direct else f"{int(site.steps)}",
        _figure(site.gap, ".1e"),
    ]


def _figure(value: Array, form: str) -> str:
    return "-" if math.isnan(float(value)) else f"{float(value):{form}}"
