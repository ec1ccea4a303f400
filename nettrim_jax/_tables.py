"""Text of at most 100 columns: tables, and lines about leaves that were left alone.

Knows text; knows no report.
"""

from collections.abc import Sequence
from typing import Any

WIDTH = 100


def grid(
    columns: Sequence[tuple[str, int]], rows: Sequence[tuple[str, Sequence[Any]]]
) -> list[str]:
    """A heading and one line per row; long paths lose their beginning."""
    width = WIDTH - sum(w + 1 for _, w in columns)
    width = max(min(width, max(len(path) for path, _ in rows)), len("layer"))

    def line(path: str, cells: Sequence[Any]) -> str:
        path = path if len(path) <= width else "…" + path[1 - width :]
        row = zip(cells, columns, strict=True)
        text = path.ljust(width) + "".join(f" {cell:>{w}}" for cell, (_, w) in row)
        return text.rstrip()

    return [line("layer", [name for name, _ in columns])] + [line(*r) for r in rows]


def fit(text: str) -> str:
    """The text, cut if it is too long."""
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def left_alone(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """One line for each leaf that is not pruned."""
    return [fit(f"left alone: {path}: {reason}") for path, reason in skipped]
