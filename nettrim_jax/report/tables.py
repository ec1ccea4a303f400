"""Text of at most 100 columns: tables, and lines about leaves that were left alone.

Knows text; knows no report.
"""

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from nettrim_jax.results import BIAS

WIDTH = 100
GAP = "…"


def grid(
    columns: Sequence[tuple[str, int]],
    rows: Sequence[tuple[str, Sequence[Any]]],
    first: str = "layer",
) -> list[str]:
    """A heading and one line per row; long paths lose what they all share."""
    width = WIDTH - sum(w + 1 for _, w in columns)
    width = max(min(width, max(len(path) for path, _ in rows)), len(first))

    def line(path: str, cells: Sequence[Any]) -> str:
        row = zip(cells, columns, strict=True)
        text = path.ljust(width) + "".join(f" {cell:>{w}}" for cell, (_, w) in row)
        return text.rstrip()

    lines = [line(first, [name for name, _ in columns])]
    texts = shortened([path for path, _ in rows], width)
    for text, (path, cells) in zip(texts, rows, strict=True):
        if not text:  # in no shorter way told from the others
            lines.append(fit(path, middle=True))
        lines.append(line(text, cells))
    return lines


def shortened(paths: Sequence[str], width: int) -> list[str]:
    """Texts of at most so many columns that tell paths apart; empty if there is none.

    A part of a path tells it apart if others go another way from there. The other parts
    are left out first, from the beginning, and then all parts are cut.
    """
    parts = [tuple(path.split("/")) for path in paths]
    nodes = {one[:k] for one in parts for k in range(1, len(one) + 1)}
    ways = Counter(node[:-1] for node in nodes)
    texts = []
    for path, one in zip(paths, parts, strict=True):
        telling = {k for k in range(len(one)) if ways[one[:k]] > 1}
        texts.append(path if len(path) <= width else _form(one, telling, width))
    seen = Counter(texts)
    return [text if seen[text] == 1 or text in paths else "" for text in texts]


def _form(parts: Sequence[str], telling: set[int], width: int) -> str:
    """A path without some of its parts; empty if even that is too long."""
    least = telling or {len(parts) - 1}
    kept, most = set(range(len(parts))), max(map(len, parts))
    forms = [(kept, most)]
    for k in sorted(kept - least):
        kept = kept - {k}
        forms.append((kept, most))
    forms += [(kept, length) for length in range(most - 1, 4, -1)]
    for kept, length in forms:
        words: list[str] = []
        for k, part in enumerate(parts):
            if k in kept:
                words.append(fit(part, length, middle=True))
            elif words[-1:] != [GAP]:
                words.append(GAP)
        if len("/".join(words)) <= width:
            return "/".join(words)
    return ""


def fit(text: str, width: int = WIDTH, middle: bool = False) -> str:
    """The text, cut at its end or in its middle if it is too long."""
    if len(text) <= width:
        return text
    tail = width // 2 if middle else 0
    return text[: width - 1 - tail] + GAP + text[len(text) - tail :]


def notes(texts: Sequence[str]) -> list[str]:
    """What else is to say, in lines that are not cut."""
    return [
        line
        for text in texts
        for line in textwrap.wrap(f"note: {text}", WIDTH, subsequent_indent="  ")
    ]


def left_alone(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """What is not pruned, each with its reason; many with one reason are joined."""
    groups: dict[str, list[str]] = {}
    for path, reason in skipped:
        why = BIAS if reason.startswith(BIAS) else reason
        groups.setdefault(why, []).append(path)
    reasons = dict(skipped)
    lines = []
    for why, paths in groups.items():
        if len(paths) < 3:
            lines += [f"left alone: {path}: {reasons[path]}" for path in paths]
        elif why == BIAS:
            lines.append(f"left alone: {len(paths)} biases and norms")
        else:
            lines.append(f"left alone: {len(paths)} leaves: {why}")
            lines.append(f"  {', '.join(paths)}")
    return [fit(line) for line in lines]
