"""The axes, the colours and the checks of arguments of all plots.

matplotlib is imported only where a plot is drawn.
Knows reports, paths and arrays; knows no plot.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._trees import known
from nettrim_jax.convex.path import Path
from nettrim_jax.report import Report
from nettrim_jax.report.tables import fit, shortened
from nettrim_jax.results import PlotError
from nettrim_jax.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008), listed from dark to light as they are in grey
BLACK, BLUE, VERMILION, GREY = "#000000", "#0072B2", "#D55E00", "#999999"
PALE = "#B5DAF3"  # a tint of sky blue, for areas behind other marks


def axes(function: str, ax: "Axes | None", size: tuple[float, float]) -> "Axes":
    """The given axes, or new ones."""
    try:
        import matplotlib.pyplot as plt
        from matplotlib.axes import Axes
    except ImportError:
        raise PlotError(
            f"plots.{function}: matplotlib is not installed; install nettrim-jax[plots]"
        ) from None
    if ax is None:
        return plt.subplots(figsize=size, layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise PlotError(
            f"plots.{function}: expected ax of matplotlib's Axes, got "
            f"{type(ax).__name__}; make one with matplotlib.pyplot.subplots()"
        )
    return ax


def check_known(function: str, what: Any) -> None:
    """Raises PlotError if values are traced."""
    if not all(known(leaf) for leaf in jax.tree.leaves(what)):
        raise PlotError(
            f"plots.{function}: the values are being traced; draw outside of jax.jit, "
            "jax.vmap and jax.grad"
        )


def check_report(function: str, report: Any) -> None:
    """Raises PlotError unless it is the report of one network."""
    if not isinstance(report, Report):
        raise PlotError(
            f"plots.{function}: expected a report, got {type(report).__name__}; give "
            "nettrim_jax.prune(params, apply_fn, batch).report"
        )
    check_known(function, report)
    shape = np.shape(report.deviation)
    if shape:
        raise PlotError(
            f"plots.{function}: expected the report of one network, got arrays of "
            f"shape {list(shape)}; take one with jax.tree.map(lambda a: a[0], report)"
        )


def check_path(function: str, found: Any) -> None:
    """Raises PlotError unless it is the path of one program."""
    if not isinstance(found, Path):
        raise PlotError(
            f"plots.{function}: expected a path, got {type(found).__name__}; make one "
            "with nettrim_jax.path(program, epsilons)"
        )
    check_known(function, found)
    shape = np.shape(found.epsilons)
    if len(shape) != 1:
        raise PlotError(
            f"plots.{function}: expected the path of one program, got budgets of shape "
            f"{list(shape)}; take one with jax.tree.map(lambda a: a[0], found)"
        )


def pair(function: str, *given: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Weights before and after, as float64."""
    arrays = []
    for name, array in zip(("before", "after"), given, strict=True):
        check_known(function, array)
        dtype = getattr(array, "dtype", type(array).__name__)
        if not (hasattr(array, "dtype") and _drawable(dtype)):
            raise PlotError(
                f"plots.{function}: expected {name} to be an array of floating numbers "
                f"or a mask, got {dtype}; give the weights of one layer"
            )
        got = np.asarray(array)
        got = got.astype(float)
        if not got.size or not np.isfinite(got).all():
            what = "no entry" if not got.size else "NaN or infinity"
            raise PlotError(
                f"plots.{function}: {name} has {what}; expected finite weights"
            )
        arrays.append(got)
    old, new = arrays
    if old.shape != new.shape:
        raise PlotError(
            f"plots.{function}: expected before and after of one shape, got "
            f"{list(old.shape)} and {list(new.shape)}; give the same leaf of both trees"
        )
    return old, new


def _drawable(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.bool_))


def matrices(function: str, *given: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The same for weights of two dimensions."""
    old, new = pair(function, *given)
    if old.ndim != 2:
        raise PlotError(
            f"plots.{function}: expected matrices [d_in, d_out], got shape "
            f"{list(old.shape)}; fold a filter with kernel.reshape(-1, d_out)"
        )
    return old, new


def names(paths: Sequence[str], width: int = 36) -> list[str]:
    """Paths of at most so many letters, told from each other by what is left."""
    texts = zip(shortened(paths, width), paths, strict=True)
    return [text or fit(path, width, middle=True) for text, path in texts]


def above(values: np.ndarray) -> float:
    """The upper limit of an axis from zero, with space above the largest value."""
    finite = values[np.isfinite(values)]
    return 1.08 * float(finite.max(initial=0)) or 1.0


def log_axis(ax: "Axes", values: np.ndarray) -> None:
    """A logarithmic x-axis for these values, whose labels do not meet."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_xscale("log")
    # by default a narrow range gets a label for nearly every digit
    if np.log10(values.max() / values.min()) < 3:
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
