"""Checks of the arguments before a pruning and of its report after it.

Knows values and reports; knows no network.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from nettrim_jax import results as codes
from nettrim_jax._trees import known
from nettrim_jax._values import flag, number, whole
from nettrim_jax.convex.config import ADMM
from nettrim_jax.report import Report, SiteReport
from nettrim_jax.results import MethodError, SolveError
from nettrim_jax.typing import Array

MODES = ("parallel", "cascade")
ON_FAILURE = ("raise", "warn", "keep")


def arguments(
    *,
    mode: str,
    solver: ADMM | None,
    rows: int,
    held_out: float,
    on_failure: str,
    memory: int,
    bound: bool = False,
    revive: bool = False,
    batches: int | None = None,
    caller: str = "prune",
) -> ADMM:
    """The solver's settings; raises MethodError if an argument is out of its range."""
    solver = ADMM() if solver is None else solver
    for name, value, good, wanted in (
        ("mode", mode, mode in MODES, f"one of {MODES}"),
        ("solver", solver, isinstance(solver, ADMM), "an ADMM(...)"),
        ("rows", rows, whole(rows) and rows >= 1, "an integer of at least 1"),
        (
            "held_out",
            held_out,
            number(held_out) and 0 <= held_out < 1,
            "a share in [0, 1)",
        ),
        ("on_failure", on_failure, on_failure in ON_FAILURE, f"one of {ON_FAILURE}"),
        (
            "memory",
            memory,
            number(memory) and memory > 0,
            "a positive number of bytes",
        ),
        ("bound", bound, flag(bound), "True or False"),
        ("revive", revive, flag(revive), "True or False"),
        (
            "batches",
            batches,
            batches is None or (whole(batches) and batches >= 1),
            "an integer of at least 1, or None for all",
        ),
    ):
        if not good:
            raise MethodError(f"{caller}({name}={value!r}): expected {wanted}")
    return solver


def at_least(least: int, caller: str, **values: Any) -> None:
    """Raises MethodError, with its name, for a value that is no such integer."""
    for name, value in values.items():
        if not (whole(value) and value >= least):
            raise MethodError(
                f"{caller}({name}={value!r}): expected an integer of at least {least}"
            )


def random_key(key: Any, caller: str = "prune") -> Array:
    """The PRNG key that ``key`` is or seeds; raises MethodError if it is neither."""
    if whole(key):
        return jax.random.key(key)
    dtype = getattr(key, "dtype", None)
    if dtype is not None and (
        jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32
    ):
        return key
    raise MethodError(
        f"{caller}(key={key!r}): expected an integer or a PRNG key such as "
        "jax.random.key(0)"
    )


def readable(report: Report) -> bool:
    """Whether the codes of all layers are known, that is, are not being traced."""
    return all(known(site.result) for site in report.sites)


def known_deviation(report: Report) -> None:
    """Warns if the network's outputs are not numbers."""
    if known(report.deviation) and math.isnan(float(report.deviation)):
        codes.warn(
            "apply_fn: the network's outputs on this batch hold NaN, as trained or as "
            "pruned, so report.deviation is NaN and nothing says what the pruning "
            "costs; look at what comes after the last layer, such as the logarithm of "
            "a negative number or a division by zero"
        )


def fitted(pruned: Any, on_failure: str, left: str) -> None:
    """Raises or warns, as asked, if a layer could not be fitted.

    Args:
      pruned: the result, with its report.
      on_failure: what is asked for.
      left: how ``on_failure="keep"`` leaves such a layer.
    """
    report = pruned.report
    failed = _failed(report)
    if not failed or on_failure == "keep":
        return
    texts = _extremes(failed, report)
    lost = [site.path for site in failed if int(site.result) != codes.EXTREME]
    if lost:
        texts.append(
            f"{len(lost)} of {len(report.sites)} layers met what is not a number: "
            f"{', '.join(lost)}. Look at the network's values on this batch, which "
            f"overflow; or take on_failure='keep' to leave such layers {left}"
        )
    _tell(texts, on_failure, pruned)


def converged(pruned: Any, on_failure: str, solver: ADMM) -> None:
    """Raises or warns, as asked, if a layer's solve did not converge."""
    report = pruned.report
    stalled = [site for site in report.sites if int(site.result) == codes.STALLED]
    if stalled:
        _tell([_stalled(stalled, report, solver)], "warn", pruned)
    failed = _failed(report)
    if not failed or on_failure == "keep":
        return
    rest = [site for site in failed if int(site.result) != codes.EXTREME]
    by_rule = [site for site in rest if math.isnan(float(site.violation))]
    hopeless = [site for site in rest if int(site.result) == codes.INFEASIBLE]
    solved = [site for site in rest if site not in (*by_rule, *hopeless)]
    texts = _extremes(failed, report)
    if by_rule:
        paths = ", ".join(site.path for site in by_rule)
        texts.append(
            f"{len(by_rule)} of {len(report.sites)} layers met what is not a number: "
            f"{paths}. Either the network's values on this batch overflow, or (of "
            "LayerOBS and of SparseGPT) the inputs' second moments are singular and "
            "want damping=...; or take on_failure='keep' to leave such layers as "
            "trained"
        )
    if hopeless:
        paths = ", ".join(site.path for site in hopeless)
        texts.append(
            f"{len(hopeless)} of {len(report.sites)} layers have no weights that meet "
            f"the budget: {paths}. The trained ones do, so the penalty's limits forbid "
            "them, or within= does: loosen those or raise NetTrim(epsilon=...); or "
            "take on_failure='keep' to leave such layers as trained"
        )
    if solved:
        lines = [
            f"{site.path}: {site.message} (gap {float(site.gap):.1e}, violation "
            f"{float(site.violation):.1e}, steps {int(site.steps)})"
            for site in solved
        ]
        lost = any(int(site.result) == codes.NAN for site in solved)
        rounded = any(int(site.result) == codes.ROUNDED for site in solved)
        texts.append(
            f"{len(solved)} of {len(report.sites)} layers did not reach "
            f"tol={solver.tol:g} in {solver.max_steps} steps: "
            + "; ".join(lines)
            + (
                ". NaN comes from activations that overflow, look at the network's "
                "values on this batch; or take"
                if lost
                else ". More steps do not help against rounding: raise "
                "solver=ADMM(tol=...), or give params and batch in float64, or take"
                if rounded
                else ". Raise solver=ADMM(max_steps=...) or tol, or take"
            )
            + " on_failure='keep' to leave such layers as trained"
        )
    _tell(texts, on_failure, pruned)


def _stalled(stalled: list[SiteReport], report: Report, solver: ADMM) -> str:
    """What to say of layers whose answers are used, but not within ``tol``."""
    lines = ", ".join(f"{site.path} (gap {float(site.gap):.1e})" for site in stalled)
    return (
        f"{len(stalled)} of {len(report.sites)} layers came within ten times "
        f"tol={solver.tol:g}, and rounding lets them come no further: {lines}. Their "
        "answers are used; raise solver=ADMM(tol=...) if that is enough, or give "
        "params and batch in float64"
    )


def _extremes(failed: list[SiteReport], report: Report) -> list[str]:
    """What to say of layers whose squares overflow or vanish."""
    paths = [site.path for site in failed if int(site.result) == codes.EXTREME]
    if not paths:
        return []
    return [
        f"{len(paths)} of {len(report.sites)} layers have weights, inputs or responses "
        f"so large or so small that their squares overflow or vanish: "
        f"{', '.join(paths)}. Scale what the layer sees on this batch, in float32 to "
        "between 1e-16 and 1e16; or leave the layers out by exclude="
    ]


def _failed(report: Report) -> list[SiteReport]:
    return [site for site in report.sites if int(site.result) not in codes.GOOD]


def _tell(texts: list[str], on_failure: str, pruned: Any) -> None:
    if on_failure == "raise":
        raise SolveError("; and ".join(texts), pruned)
    for text in texts:
        codes.warn(text)
