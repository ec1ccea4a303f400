"""Plots of layers, reports, paths, solves and groups of units.

Each function takes an ``Axes`` of matplotlib, or makes one, and returns it. The colours
are those of Okabe and Ito (2008), which the colour-blind can tell apart; in grey they
differ in lightness, marker or line. matplotlib is imported only where a plot is drawn.

Knows the results of ``prune``, ``path`` and ``history``; knows no network.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nettrim_jax import _drawing, results
from nettrim_jax._drawing import BLACK, BLUE, GREY, PALE, VERMILION
from nettrim_jax._structure_plot import structure as structure
from nettrim_jax._values import whole
from nettrim_jax.convex.admm import history
from nettrim_jax.convex.config import ADMM
from nettrim_jax.convex.path import Path
from nettrim_jax.convex.programs import Program
from nettrim_jax.report import Report
from nettrim_jax.results import PlotError
from nettrim_jax.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def links(before: ArrayLike, after: ArrayLike, ax: "Axes | None" = None) -> "Axes":
    r"""The adjacency matrix of a layer: the links that are left, removed and new.

    .. math::
        \text{left: } W_{ij} \ne 0 \ne W'_{ij}, \qquad
        \text{removed: } W_{ij} \ne 0 = W'_{ij}, \qquad
        \text{new: } W_{ij} = 0 \ne W'_{ij}

    (After Aghasi et al., 2017, fig. 4.) If there are fewer pixels than links, a pixel
    has the mean of its links' colours.

    Args:
      before: the trained weights, ``[d_in, d_out]``.
      after: the pruned weights or their mask, ``[d_in, d_out]``.
      ax: where to draw; a new figure if None.

    Returns:
      The axes, with inputs from left to right and units from top to bottom.

    Raises:
      PlotError: these are not two matrices of one shape with known, finite values; or
        matplotlib is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> ax = nt.plots.links(jnp.ones((4, 3)), jnp.eye(4, 3))
      >>> ax.get_title()
      '3 of 12 links left (25.0 %)'
    """
    old, pruned = _drawing.matrices("links", before, after)
    ax = _drawing.axes("links", ax, (7, 3.4))
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    kind = ((pruned != 0) * 2 + (old != 0)).T
    colours = ListedColormap(["white", PALE, VERMILION, BLACK])
    ax.imshow(kind, colours, vmin=0, vmax=3, aspect="auto", interpolation_stage="rgba")
    patches = [
        Patch(facecolor=colours(value), edgecolor=BLACK, lw=0.5, label=label)
        for value, label in ((3, "left"), (1, "removed"), (2, "new"))
        if (kind == value).any()
    ]
    left, size, new = (int(a.sum()) for a in (kind == 3, kind % 2, kind == 2))
    title = f"{left} of {size} links left ({100 * left / max(size, 1):.1f} %)"
    title += f", {new} new" if new else ""
    ax.set(title=title, xlabel="input", ylabel="output unit")
    ax.legend(handles=patches, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def weights(
    before: ArrayLike, after: ArrayLike, ax: "Axes | None" = None, bins: int = 60
) -> "Axes":
    r"""A histogram of the non-zero weights, with exact zeros counted separately.

    .. math::
        |\{i : W_i \in \text{bin},\, W_i \ne 0\}|
        \quad\text{and}\quad |\{i : W_i = 0\}|

    Args:
      before: the trained weights, of any shape.
      after: the pruned weights, of the same shape.
      ax: where to draw; a new figure if None.
      bins: number of bins over the range of both.

    Returns:
      The axes, with counts on a log axis and exact zeros as a stem at zero.

    Raises:
      PlotError: these are not two arrays of one shape with known, finite values, or
        ``bins`` is not a positive integer; or matplotlib is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> ax = nt.plots.weights(jnp.array([0.1, -1.0]), jnp.array([0.0, -0.8]))
      >>> ax.get_xlabel()
      'weight'
    """
    if not whole(bins) or bins < 1:
        raise PlotError(f"plots.weights(bins={bins!r}): expected an integer above 0")
    old, new = _drawing.pair("weights", before, after)
    ax = _drawing.axes("weights", ax, (6, 4.2))
    both = np.concatenate([old.ravel(), new.ravel()])
    widest = float(np.abs(both).max()) or 1.0
    edges = np.linspace(-widest, widest, bins + 1)
    counts = [np.histogram(a[a != 0], edges)[0] for a in (old, new)]
    sums = [int(count.sum()) for count in counts]
    labels = [f"before: {sums[0]} not zero", f"after: {sums[1]} not zero"]
    # the log axis starts at half a weight, so that a single one is visible
    ax.stairs(counts[0], edges, baseline=0.5, fill=True, color=PALE, label=labels[0])
    ax.stairs(counts[1], edges, baseline=0.5, color=BLUE, lw=1.8, label=labels[1])
    stems = (("after", new, "-o", BLACK), ("before", old, "--s", "white"))
    for name, a, style, face in stems:
        zeros, look = int((a == 0).sum()), {"color": BLACK, "mfc": face, "lw": 1.8}
        if zeros:
            label = f"{name}: {zeros} exact zeros"
            ax.plot([0, 0], [0.5, zeros], style, markevery=[1], label=label, **look)
    ax.set(xlabel="weight", ylabel="number of weights", yscale="log")
    ax.set_ylim(bottom=0.5)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return ax


def sites(report: Report, ax: "Axes | None" = None) -> "Axes":
    r"""The sparsity and the error of every layer of a report, both in per cent.

    .. math::
        100\,(1 - \text{nonzeros} / \text{size}), \qquad
        100\,\text{error}, \qquad 100\,\text{held_out_error}

    Args:
      report: the report of one network, with known values.
      ax: where to draw; a new figure if None.

    Returns:
      The axes, with the sparsity on the lower axis; the errors are on the upper axis of
      its twin, which is ``ax.figure.axes[-1]``.

    Raises:
      PlotError: ``report`` is not a report with layers, is traced or has a mapped axis;
        or matplotlib is not installed.

    Example:
      >>> import jax
      >>> import nettrim_jax as nt
      >>> w = jax.random.normal(jax.random.key(0), (10, 5))
      >>> x = jax.random.normal(jax.random.key(1), (100, 10))
      >>> half = nt.Magnitude(nt.Sparsity(0.5))
      >>> pruned = nt.prune({"w": w}, lambda params, x: x @ params["w"], x, method=half)
      >>> ax = nt.plots.sites(pruned.report)
      >>> [label.get_text() for label in ax.get_yticklabels()]
      ['w']
    """
    _drawing.check_report("sites", report)
    if not report.sites:
        raise PlotError("plots.sites: the report has no layer, so there is no picture")
    rows = np.arange(len(report.sites))
    ax = _drawing.axes("sites", ax, (7, 1.5 + 0.45 * len(rows)))
    sparsity, error, unseen = (
        100 * np.asarray([float(getattr(site, name)) for site in report.sites])
        for name in ("sparsity", "error", "held_out_error")
    )
    # bars are in the upper half of a row, marks in the lower: their scales differ
    bars = ax.barh(rows - 0.2, sparsity, 0.4, color=PALE, label="sparsity")
    ax.set_yticks(rows, [site.path for site in report.sites])
    ax.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5))
    ax.set_xlabel("sparsity (% of the layer's weights), bars")
    twin = ax.twiny()
    look: dict[str, Any] = {"mfc": "none", "mew": 1.6}
    marks = twin.plot(error, rows + 0.22, "o", color=BLUE, label="error")
    if np.isfinite(unseen).any():
        label = "held-out error"
        marks += twin.plot(
            unseen, rows + 0.22, "D", color=VERMILION, label=label, **look
        )
    twin.set_xlim(left=0, right=_drawing.above(np.concatenate([error, unseen])))
    twin.set_xlabel("relative error (% of the layer's response), marks")
    handles = [bars, *marks]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def path(found: Path, ax: "Axes | None" = None) -> "Axes":
    r"""The sparsity and the penalty against the budget, along a path.

    .. math::
        \epsilon_k \mapsto 100\,|\{ij : W^k_{ij} = 0\}| / (d_\text{in} d_\text{out}),
        \qquad \epsilon_k \mapsto g(W^k)

    Args:
      found: the path of one program, from :func:`nettrim_jax.path`.
      ax: where to draw; a new figure if None.

    Returns:
      The axes, with the sparsity on the left axis; the penalty is on the right axis of
      its twin, which is ``ax.figure.axes[-1]``. A solve that did not converge is
      crossed out.

    Raises:
      PlotError: ``found`` is not a path, is traced or has a mapped axis; or matplotlib
        is not installed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> X = jax.random.normal(jax.random.key(0), (50, 10))
      >>> Y = jax.nn.relu(X @ jax.random.normal(jax.random.key(1), (10, 3)))
      >>> found = nt.path(nt.relu_program(X, Y, 0.0), jnp.array([9.0, 3.0, 1.0]))
      >>> nt.plots.path(found).get_xscale()
      'log'
    """
    _drawing.check_path("path", found)
    ax = _drawing.axes("path", ax, (6, 4))
    order = np.argsort(np.asarray(found.epsilons), kind="stable")
    codes = np.asarray(found.solutions.result)[order]
    epsilons, sparsity, value = (
        np.asarray(a, float)[order]
        for a in (found.epsilons, found.sparsity, found.solutions.stats.objective)
    )
    # weights that are NaN have no sparsity, since NaN is not zero
    lost = ~np.isfinite(np.asarray(found.solutions.W)[order]).all(axis=(1, 2))
    sparsity, value = (np.where(lost, np.nan, a) for a in (100 * sparsity, value))
    handles = ax.plot(epsilons, sparsity, "-o", color=BLUE, label="sparsity")
    twin = ax.twinx()
    look: dict[str, Any] = {"color": VERMILION, "mfc": "none"}
    handles += twin.plot(epsilons, value, "--D", label="penalty", **look)
    short = (codes != results.CONVERGED) & ~lost
    if short.any():
        look = {"color": BLACK, "ms": 12, "mew": 2}
        crosses = epsilons[short], sparsity[short], "x"
        handles += ax.plot(*crosses, label="not converged", **look)
    if (epsilons > 0).all():
        _drawing.log_axis(ax, epsilons)
    ax.set(
        xlabel=r"budget $\epsilon$ (Frobenius norm, in units of the response)",
        ylabel="sparsity (% of the weights)",
        ylim=(0, 104),
    )
    twin.set_ylabel("penalty $g(W)$")
    twin.set_ylim(bottom=0)
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 3}
    ax.legend(handles=handles, frameon=False, **place)
    return ax


def convergence(
    program: Program, config: ADMM | None = None, ax: "Axes | None" = None
) -> "Axes":
    r"""The gap and the violation against the steps of a solve, with the tolerance.

    .. math::
        k \mapsto |g(W_k) - D_k| / g(W_k), \qquad
        k \mapsto \mathrm{dist}(X W_k + b_k + t) / \|Y_\Omega\|_F

    It solves the program by :func:`nettrim_jax.history`, in the same steps as
    :func:`nettrim_jax.solve`. Zeros have no place on a log axis and are left out; the
    axis ends at a hundredth of the tolerance.

    Args:
      program: one program, with known values.
      config: the settings; ``ADMM()`` by default.
      ax: where to draw; a new figure if None.

    Returns:
      The axes, both logarithmic.

    Raises:
      PlotError: ``program`` is traced or holds NaN; or matplotlib is not installed.
      ProgramError: as :func:`nettrim_jax.solve`.
      MethodError: as :func:`nettrim_jax.solve`.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> program = nt.relu_program(jnp.eye(3), jnp.array([[2.0], [1.0], [0.0]]), 0.1)
      >>> ax = nt.plots.convergence(program)
      >>> [line.get_label() for line in ax.lines]
      ['gap', 'violation', 'tolerance']
    """
    config = ADMM() if config is None else config
    _drawing.check_known("convergence", program)
    seen = history(program, config)
    looks = np.isfinite(np.asarray(seen.objective))
    if not looks.any():
        raise PlotError(
            "plots.convergence: the solve met a NaN or overflow before its first look; "
            "nettrim_jax.solve says the same by its result"
        )
    ax = _drawing.axes("convergence", ax, (6, 4))
    steps = np.asarray(seen.steps)[looks]
    for values, style, colour, label in (
        (seen.gap, "-o", BLUE, "gap"),
        (seen.violation, "--s", VERMILION, "violation"),
    ):
        values = np.asarray(values, float)[looks]
        values = np.where(values > 0, values, np.nan)
        ax.plot(steps, values, style, color=colour, ms=5, mfc="none", label=label)
    ax.axhline(config.tol, color=GREY, ls=":", lw=1.8, label="tolerance")
    ax.set(
        xlabel="steps of ADMM",
        ylabel="relative gap, relative violation",
        xscale="log",
        yscale="log",
    )
    ax.set_ylim(bottom=max(ax.get_ylim()[0], config.tol / 100))
    ticks = steps[0] * 2 ** np.arange(np.log2(steps.size).astype(int) + 1)
    ax.set_xticks(ticks, [f"{tick}" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.legend(loc="best", frameon=False)
    return ax


def bound(reports: Sequence[Report], ax: "Axes | None" = None) -> "Axes":
    r"""The measured deviation against the theorem's bound, one mark per report.

    .. math::
        (\text{bound},\; \text{deviation}), \qquad
        \text{with the line } \text{deviation} = \text{bound}

    Args:
      reports: reports of one network each, with known values; or one report.
      ax: where to draw; a new figure if None.

    Returns:
      The axes, both logarithmic. Reports without a bound, or with a bound or deviation
      of zero, have no mark; the legend counts them.

    Raises:
      PlotError: no report has a bound, one of them is not a report, is traced or has a
        mapped axis; or matplotlib is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> batch = jnp.eye(4)
      >>> pruned = nt.prune(
      ...     {"w": jnp.ones((4, 2))}, lambda p, x: x @ p["w"], batch, bound=True
      ... )
      >>> nt.plots.bound(pruned.report).get_xlabel()
      "bound (relative to the output's norm)"
    """
    one = isinstance(reports, Report) or not isinstance(reports, Sequence)
    given = [reports] if one else reports
    for report in given:
        _drawing.check_report("bound", report)
    limits, moved = (
        np.asarray([float(getattr(report, name)) for report in given])
        for name in ("bound", "deviation")
    )
    drawn = np.isfinite(limits) & (limits > 0) & (moved > 0)
    if not drawn.any():
        raise PlotError(
            f"plots.bound: none of {len(given)} reports has a bound and a deviation "
            "above zero; ask for bounds with prune(..., bound=True), and print(report) "
            "says where one stops"
        )
    ax = _drawing.axes("bound", ax, (5, 4.4))
    left = int((~drawn).sum())
    label = "report" + (f" ({left} of {len(given)} without a mark)" if left else "")
    ax.plot(
        limits[drawn], moved[drawn], "o", color=BLUE, mfc="none", mew=1.6, label=label
    )
    ends = np.concatenate([limits[drawn], moved[drawn]])
    ends = np.asarray([ends.min() / 1.5, ends.max() * 1.5])
    ax.plot(ends, ends, "--", color=BLACK, lw=1.2, label="deviation = bound")
    ax.set(
        xlabel="bound (relative to the output's norm)",
        ylabel="measured deviation (relative)",
        xscale="log",
        yscale="log",
    )
    ax.legend(loc="upper left", frameon=False)
    return ax
