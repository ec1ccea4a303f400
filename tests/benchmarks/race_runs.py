"""One method on one case of the race: pruned, timed, measured on held-out rows."""

import os
import pathlib
import platform
import re
import time
from collections.abc import Callable

import jax
import numpy as np
import race_cases
from race_meters import Compilation, Errors, Memory
from race_tables import ALONE, DUEL, OBS, OURS, TARGETS, TIMED, UNDAMPED, UNTUNED

import nettrim_jax as nt

CAP = 0.7  # of the last layer of a network
# cases in which one weight after another can be removed
SMALL = (*race_cases.NETWORKS, "random 512")


def wanda(pattern):
    """Wanda, which compares the weights of one unit with each other."""
    if isinstance(pattern, nt.Sparsity):
        pattern = nt.Sparsity(pattern.level, scope="column")
    return nt.Wanda(pattern)


METHODS: dict[str, Callable] = {
    "magnitude": nt.Magnitude,
    "wanda": wanda,
    "sparsegpt": nt.SparseGPT,
    "random": nt.Random,
    "obd": nt.OBD,
    OBS: nt.LayerOBS,
    UNDAMPED: lambda p: nt.LayerOBS(p, damping=0.0),
    OURS: nt.Reconstruct,
    ALONE: lambda p: nt.Reconstruct(p, downstream=0.0),
    UNTUNED: lambda p: nt.Reconstruct(p, ridge=1e-3, plain=0.0),
}


def pattern(target, last=False):
    """What a target leaves of a layer, or of the last one."""
    asked = TARGETS[target]
    if isinstance(asked, tuple):
        return nt.NM(*asked, pad=True)
    return nt.Sparsity(min(asked, CAP) if last else asked)


def method_of(name, case, target):
    """The methods of a case's layers."""
    make = METHODS[name]
    if case.last is None:
        return make(pattern(target))
    return {case.last: make(pattern(target, last=True)), ".*": make(pattern(target))}


def wanted(name, method, mode, target):
    """Whether a method runs on a case: some ask one question only."""
    if method == DUEL:  # which is faster, side by side?
        return name.startswith("random 1024") and target == TIMED
    if method == UNTUNED:  # does it overfit where d_in is half the number of rows?
        return name.startswith("random 1024") and target == "50 %"
    if method in (OBS, UNDAMPED) and not name.startswith(SMALL):
        return False  # it would take hours
    if method in (UNDAMPED, ALONE):  # which method has the least error of a layer?
        return mode == "parallel" and name in race_cases.NETWORKS
    if name.startswith("rows"):  # what do more rows cost?
        return method in ("wanda", "sparsegpt", OURS) and target == TIMED
    return True


def runs(name, method, asked, quick=False, repeats=0):
    """One record of a case, then one per run.

    Args:
      name: of the case.
      method: of the method, or that of the duel.
      asked: pairs of mode and target.
      quick: small data, to see that it works.
      repeats: how often it is pruned again to the target whose time counts.
    """
    case = race_cases.make(name, quick)
    compilation, errors = Compilation(), Errors(case)
    memory, sites = Memory(), errors.graph.sites
    names = [re.sub("^params/|/kernel$", "", site.path) for site in sites]
    yield {
        "case": name,
        "machine": machine(),
        "layers": names,
        "shapes": [list(site.index.shape) for site in sites],
        "relu": [site.response == "relu" for site in sites],
        "last": next((n for n in names if case.last and re.search(case.last, n)), None),
        "rows": case.rows,
        "held_rows": case.held_rows,
        "measure": case.measure,
        "trained": case.score and rounded(case.score(case.params)),
    }
    if method == DUEL:
        yield {"duel": duel(case, compilation)}
        return
    for mode, target in asked:
        seconds, first = [], None
        for _ in range(1 + (repeats if target == TIMED else 0)):
            memory.begin()
            pruned, wall, compiling = timed(case, method, target, mode, compilation)
            seconds.append(wall - compiling)
            first = compiling if first is None else first
        yield {
            "mode": mode,
            "target": target,
            # without the first call, if there are others
            "seconds": rounded(np.median(seconds[1:] or seconds)),
            "compilation": rounded(first),
            **memory.peak(),
            "nonzeros": [int(site.nonzeros) for site in pruned.report.sites],
            "calibration": [rounded(site.error) for site in pruned.report.sites],
            "held_out": [rounded(e) for e in errors.of(pruned.params, mode)],
            "score": case.score and rounded(case.score(pruned.params)),
        }


def recovered(name, targets, quick=False):
    """One record per target: scores in cascade mode, after ``recover``, and trained."""
    case, compilation = race_cases.make(name, quick), Compilation()
    for target in targets:
        pruned, *_ = timed(case, OURS, target, "cascade", compilation)
        done = nt.recover(
            *(pruned, case.params, case.apply_fn, case.more),
            steps=10 if quick else 1000,
            progress=False,
        )
        # a network that is trained for the race may be another one each time
        every = pruned.params, done.params, case.params
        scores = [rounded(case.score(params)) for params in every]
        yield {"mode": "cascade", "target": target, "recovered": scores}


def duel(case, compilation):
    """Seconds of both methods in turn, three of each after a first call."""
    seconds = {"sparsegpt": [], OURS: []}
    for again in range(4):
        for method, list_ in seconds.items():
            _, wall, compiling = timed(case, method, TIMED, "parallel", compilation)
            list_ += [rounded(wall - compiling)] if again else []
    return seconds


def timed(case, method, target, mode, compilation):
    """What was pruned, the seconds, and those of them that compiled."""
    start = time.perf_counter()
    pruned = nt.prune(
        case.params,
        case.apply_fn,
        case.batch,
        method=method_of(method, case, target),
        mode=mode,
        rows=case.rows,
        held_out=0,
        on_failure="warn",
        progress=False,
    )
    jax.block_until_ready(pruned)
    return pruned, time.perf_counter() - start, compilation.since(start)


def machine():
    """What this runs on."""
    cpu = pathlib.Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    models = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": f"{os.cpu_count()} cores",
        "jax": f"JAX {jax.__version__} on {jax.devices()[0].device_kind}, float32",
    }


def rounded(value):
    """A number short enough to be kept."""
    return float(f"{float(value):.4g}")
