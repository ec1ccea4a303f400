"""Result codes with their messages, and the errors.

A solve returns a code per lane, since lanes of one call cannot raise; ``prune`` and
``refit`` raise.

Knows numbers; knows no solver.
"""

import functools
import operator
import sys
import warnings
from typing import Any

import jax
import numpy as np

from nettrim_jax._numerics import numpy_of
from nettrim_jax._trees import known
from nettrim_jax.typing import Array

HERE = __name__.split(".")[0]
BIAS = "a bias"  # how the reasons of biases and of the factors of norms begin
CONVERGED = 0
MAX_STEPS = 1
NAN = 2
DIRECT = 3
INFEASIBLE = 4
EXTREME = 5
STALLED = 6
ROUNDED = 7
GOOD = (CONVERGED, DIRECT, STALLED)

MESSAGES = {
    CONVERGED: "converged: gap and violation are certified within tol",
    MAX_STEPS: "max_steps: stopped before gap and violation fell below tol",
    STALLED: "stalled: rounding keeps gap or violation above tol, within ten times it",
    ROUNDED: "rounded: rounding keeps gap or violation above ten times tol",
    DIRECT: "direct: by a method without a certificate",
    INFEASIBLE: "infeasible: no weights meet the budget, and the dual proves it",
    EXTREME: "extreme: numbers so large or small that their squares are none",
    NAN: "nan: not a number met, in the data or by overflow",
}
NAMES = {code: text.split(":")[0] for code, text in MESSAGES.items()}


# from the best code to the worst one
ORDER = (CONVERGED, DIRECT, STALLED, ROUNDED, MAX_STEPS, NAN, INFEASIBLE, EXTREME)


def message(code: int | Array) -> str:
    """The meaning of a result code.

    Example:
      >>> from nettrim_jax import results
      >>> results.message(0)
      'converged: gap and violation are certified within tol'
    """
    if not known(code):
        raise NetTrimError(
            "result code: its value is being traced; return it from the function that "
            "JAX traces, and look at it outside"
        )
    try:
        return MESSAGES[int(code)]
    except (KeyError, TypeError, ValueError):
        raise NetTrimError(
            f"result code {code!r} is unknown; the codes are {sorted(MESSAGES)}"
        ) from None


def good(codes: Array) -> Array:
    """Which of some result codes are in ``GOOD``."""
    return functools.reduce(operator.or_, (codes == code for code in GOOD))


def worst(codes: Array) -> Array:
    """The worst of some result codes."""
    xp = numpy_of(codes)
    rank = xp.asarray(np.argsort(ORDER), np.int32)
    return xp.asarray(ORDER, np.int32)[xp.max(rank[codes])]


def made_here(given: Any, *names: str) -> bool:
    """Whether it is a record of this library that has these attributes.

    A user's params may have attributes of the same names, as a NamedTuple or a module
    of Equinox with a leaf called ``mask``. An object that is no pytree cannot be
    params, and is as good as a record.
    """
    homes = (kind.__module__.split(".")[0] for kind in type(given).__mro__)
    opaque = jax.tree_util.all_leaves([given])
    return (HERE in homes or opaque) and all(hasattr(given, name) for name in names)


def warn(text: str) -> None:
    """Warns at the line outside of this library that has called it."""
    level, frame = 1, sys._getframe()
    ours = (HERE, "contextlib")  # a call may be decorated by a context
    while frame and frame.f_globals.get("__name__", "").split(".")[0] in ours:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


class NetTrimError(ValueError):
    """Base of every error that this library raises itself."""


class ParamsError(NetTrimError):
    """The params are empty, integer, not numbers, or infinite in a layer."""


class BatchError(NetTrimError):
    """The batch has no rows or bad values, or does not fit the network."""


class ApplyFnError(NetTrimError):
    """``apply_fn(params, batch)`` failed or takes other arguments."""


class LayersError(NetTrimError):
    """The network has no layer that can be pruned."""


class MethodError(NetTrimError):
    """A method, a solver or another setting is not valid."""


class ProgramError(NetTrimError):
    """The arrays of one program do not fit each other."""


class SolveError(NetTrimError):
    """A layer's solve did not converge.

    Attributes:
      pruned: what ``prune`` or ``refit`` would have returned with
        ``on_failure="warn"``: params, mask and report.
    """

    def __init__(self, message: str, pruned: Any = None):
        super().__init__(message)
        self.pruned = pruned


class FileError(NetTrimError):
    """A file is damaged, or not one that ``save`` has written."""


class PlotError(NetTrimError):
    """The arguments cannot be drawn, or matplotlib is not installed."""
