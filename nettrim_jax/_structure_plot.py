"""The plot of a network's groups of units, and of what was taken from them.

matplotlib is imported only where it is drawn.
Knows what ``units``, ``shrink`` and ``trim`` return; knows no network.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nettrim_jax import _drawing
from nettrim_jax._drawing import BLACK, BLUE, GREY, PALE
from nettrim_jax.structure import Small, Structure, Trimmed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = {
    "neuron": "o",
    "channel": "s",
    "head": "^",
    "dimension": "D",
    "group": "P",
    "state": "v",
}
ROOMY = 40  # groups that have the pitch of other plots
PITCH, TIGHT = 0.28, 0.16  # inches of a row
TALLEST = 40  # inches
SPREAD = 12  # sizes that differ by more have a log axis


class _Row(NamedTuple):
    """A group: its units, and how many were left after each round."""

    name: str
    kind: str
    count: int
    left: tuple[int, ...]


def structure(found: "Structure | Small | Trimmed", ax: "Axes | None" = None) -> "Axes":
    r"""The groups of a network by their number of units, and what was taken.

    .. math::
        g \mapsto n_g, \qquad g \mapsto k_g

    with the :math:`n_g` units of group :math:`g`, of which :math:`k_g` are left. The
    shape of a mark is the kind of the group.

    Args:
      found: what :func:`nettrim_jax.units`, :func:`nettrim_jax.shrink` or
        :func:`nettrim_jax.trim` returns.
      ax: where to draw; a new figure if None, as high as there are groups.

    Returns:
      The axes, with the groups from top to bottom. Units that were removed are a pale
      line from what is left to the full number, with a tick at each round between.

    Raises:
      PlotError: ``found`` is something else, or has no group; or matplotlib is not
        installed.

    Example:
      >>> import jax
      >>> import nettrim_jax as nt
      >>> shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, "float32")
      >>> params = {"hidden": shape(20, 300), "output": shape(300, 10)}
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["hidden"]) @ params["output"]
      >>> small = nt.shrink(params, apply_fn, shape(8, 20), {"hidden": range(240)})
      >>> nt.plots.structure(small).get_title()
      '60 of 300 units left (20.0 %)'
    """
    rows = _rows(found)
    pitch = PITCH if len(rows) <= ROOMY else TIGHT
    height = min(1.5 + pitch * max(len(rows), 3), TALLEST)
    ax = _drawing.axes("structure", ax, (7.5, height))
    at = np.arange(len(rows))
    counts = np.array([row.count for row in rows])
    left = np.array([(row.left or (row.count,))[-1] for row in rows])
    taken = bool(rows[0].left)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    points = _points(ax, len(rows))
    size = float(np.clip(0.55 * points, 2.5, 7))
    if taken:
        ax.hlines(at, left, counts, color=PALE, lw=size, zorder=1)
        between = [(n, k) for k, row in enumerate(rows) for n in row.left[:-1]]
        if between:
            look: dict[str, Any] = {"color": GREY, "ms": size, "mew": 1.2}
            ax.plot(*np.transpose(between), "|", zorder=2, label="earlier", **look)
    kinds = list(dict.fromkeys(row.kind for row in rows))
    for kind in kinds:
        mine = np.array([row.kind == kind for row in rows])
        look = {"marker": MARKERS.get(kind, "*"), "ms": size, "ls": "none"}
        if taken:
            full = counts[mine], at[mine]
            ax.plot(*full, color=BLACK, mfc="white", zorder=3, **look)
        ax.plot(left[mine], at[mine], color=BLUE, zorder=4, **look)
    _label(ax, rows, points)
    spread = counts.max() / left.min()
    ax.set_xscale("log" if spread > SPREAD else "linear")
    _ticks(ax, left.min(), counts.max())
    _legend(ax, rows, kinds)
    total, rest = int(counts.sum()), int(left.sum())
    title = f"{total:,} units in {len(rows)} group{'s' * (len(rows) > 1)}"
    if taken:
        title = f"{rest:,} of {total:,} units left ({100 * rest / total:.1f} %)"
    ax.set(title=title, xlabel="units", ylabel="group")
    return ax


def _rows(found: Any) -> list[_Row]:
    """The groups of what was given."""
    if isinstance(found, Structure):
        rows = [_Row(g.name, g.kind, g.count, ()) for g in found.groups]
    elif isinstance(found, Small):
        groups = found.report.groups
        rows = [_Row(g.name, g.kind, g.units.before, (g.units.after,)) for g in groups]
    elif isinstance(found, Trimmed):
        groups, every = found.start.structure.groups, found.rounds or (found.start,)
        rows = [
            _Row(g.name, g.kind, g.count, tuple(one.units[g.name] for one in every))
            for g in groups
        ]
    else:
        raise _drawing.PlotError(
            "plots.structure: expected what nettrim_jax.units, shrink or trim returns, "
            f"got {type(found).__name__}"
        )
    if not rows:
        raise _drawing.PlotError(
            "plots.structure: the network has no group of units that can be removed; "
            "print(nettrim_jax.units(params, apply_fn, batch)) says why"
        )
    return rows


def _points(ax: "Axes", rows: int) -> float:
    """The height of a row, in points."""
    return 72 * ax.bbox.height / ax.figure.dpi / rows


def _label(ax: "Axes", rows: list[_Row], points: float) -> None:
    """Names beside the rows, and numbers behind the marks; not all if too many."""
    size = float(np.clip(0.75 * points, 5, 10))
    step = int(np.ceil(1.1 * size / points))
    names = _drawing.names([row.name for row in rows])
    at = range(0, len(rows), step)
    ax.set_yticks(list(at), [names[k] for k in at], fontsize=size)
    for k in at:
        row = rows[k]
        text = " of ".join(f"{n:,}" for n in (*row.left[-1:], row.count))
        place: dict[str, Any] = {"xytext": (8, 0), "textcoords": "offset points"}
        ax.annotate(text, (row.count, k), va="center_baseline", fontsize=size, **place)


def _ticks(ax: "Axes", low: int, high: int) -> None:
    """Whole numbers on the axis of units."""
    from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

    if ax.get_xscale() == "log":
        room = (high / low) ** 0.3  # for the numbers behind the marks
        ax.set_xlim(low / room**0.2, high * room)
        ticks = 2 ** np.arange(np.floor(np.log2(low)), np.ceil(np.log2(high)) + 1)
        ax.set_xticks(ticks[:: -(-len(ticks) // 9)])
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlim(0, 1.3 * high)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _legend(ax: "Axes", rows: list[_Row], kinds: list[str]) -> None:
    from matplotlib.lines import Line2D

    def mark(label: str, marker: str, **look: Any) -> Line2D:
        return Line2D([], [], marker=marker, ls="none", label=label, **look)

    handles = [mark(kind, MARKERS.get(kind, "*"), color=GREY) for kind in kinds]
    if rows[0].left:
        handles += [
            mark("left", "o", color=BLUE),
            mark("before", "o", color=BLACK, mfc="white"),
            Line2D([], [], color=PALE, lw=6, label="removed"),
        ]
    if len(rows[0].left) > 1:
        handles.append(mark("by round", "|", color=GREY, mew=1.2))
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    ax.legend(handles=handles, frameon=False, **place)
