"""``prune``: params, apply_fn and a batch in; sparse params, mask and report out.

The stream: trace the layers, capture what they see, make a program of each, solve
all of one shape together, write the answers back, measure. The one room that knows
both models and the solver.
"""

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import batching, jaxprs, layers, masks, methods
from nettrim_jax import progress as bars
from nettrim_jax import results as codes
from nettrim_jax.activations import Activation, capture
from nettrim_jax.admm import ADMM, Solution
from nettrim_jax.layers import Place
from nettrim_jax.methods import Method, NetTrim
from nettrim_jax.programs import known
from nettrim_jax.progress import Progress
from nettrim_jax.report import Report, SiteReport
from nettrim_jax.results import BatchError, MethodError, ParamsError, SolveError
from nettrim_jax.tracing import Graph, Site, is_array, require_sites, trace
from nettrim_jax.typing import ApplyFn, Array, ArrayLike, Batch, Params, Path

MODES = ("parallel",)
ON_FAILURE = ("raise", "warn", "keep")


class Pruned(NamedTuple):
    """What :func:`prune` gives back."""

    params: Params  # same tree, shapes and dtypes; exact zeros
    mask: Params  # same tree, bool; True where an entry is kept
    report: Report


def prune(
    params: Params,
    apply_fn: ApplyFn,
    batch: Batch,
    *,
    method: Method | Mapping[str, Method | None] | None = None,
    mode: str = "parallel",
    solver: ADMM | None = None,
    rows: int = 4096,
    held_out: float = 0.1,
    weights: ArrayLike | None = None,
    key: int | Array = 0,
    on_failure: str = "raise",
    progress: Progress = None,
    memory: int = 2**31,
) -> Pruned:
    r"""Prunes every linear layer of a trained network by Net-Trim's convex program.

    .. math::
        \min_W \|W\|_1 \quad\text{s.t.}\quad
        \|(X W + t - Y)_\Omega\|_F \le \epsilon \|Y\|_F, \quad
        (X W + t)_{ij} \le 0 \;\text{off}\; \Omega

    per layer, with ``X`` what the trained network feeds it and ``Y`` what it answers
    after its ReLU; over all entries where no ReLU follows. Needs no labels and no
    retraining. (Aghasi et al., 2017.)

    It is a pure function: it works within ``jax.jit`` and under ``jax.vmap`` over a
    stack of params; there nothing raises on values, and the codes are in the report.

    Args:
      params: a pytree of arrays; leaves of other kinds stay as they are.
      apply_fn: the network, ``apply_fn(params, batch)``; what it returns is only
        compared before and after.
      batch: what ``apply_fn`` takes.
      method: ``NetTrim()`` by default, or a dict from regular expressions
        (``re.search`` on a leaf's path, first match wins) to a method or ``None``.
      mode: ``"parallel"``: every layer from the trained network's own activations.
      solver: ``ADMM()`` by default.
      rows: at most so many rows (samples, positions) per layer, drawn without bias.
      held_out: share of those rows that no solver sees, in [0, 1).
      weights: a prefix of the rows' axes; rows of weight zero (padding) do not count.
      key: seed of the drawing, an integer or a PRNG key.
      on_failure: for layers whose solve did not converge, ``"raise"``, ``"warn"``, or
        ``"keep"`` them as trained.
      progress: ``None``: a bar on a terminal only; ``True``, ``False``, or a function
        ``(done, total, what)``.
      memory: bytes that one call of the solver may take; more lanes than fit are
        solved in turns.

    Returns:
      Sparse params that drop back into the network, the mask, and the report.

    Raises:
      NetTrimError: with what, where, expected and got, and what to do.

    Example:
      >>> import jax
      >>> import nettrim_jax as nt
      >>> params = {"w": jax.random.normal(jax.random.key(0), (8, 4))}
      >>> x = jax.random.normal(jax.random.key(1), (200, 8))
      >>> apply_fn = lambda params, x: jax.nn.relu(x @ params["w"])
      >>> pruned = nt.prune(params, apply_fn, x, method=nt.NetTrim(epsilon=0.3))
      >>> pruned.report.sites[0].path, pruned.report.sites[0].response
      ('w', 'relu')
      >>> bool(pruned.report.sites[0].error <= 0.3 + 1e-3)
      True
    """
    solver = _settings(mode, solver, rows, held_out, on_failure, memory)
    _check_finite("params", params, ParamsError)
    _check_finite("batch", batch, BatchError)
    graph = trace(apply_fn, params, batch)
    require_sites(graph)
    chosen, asked, skipped = _choose(graph, NetTrim() if method is None else method)

    everything, tree = jax.tree.flatten(params)
    old = [jnp.asarray(leaf) for leaf in everything if is_array(leaf)]
    inputs = [jnp.asarray(leaf) for leaf in jax.tree.leaves(batch)]
    traced = not all(known(leaf) for leaf in [*old, *inputs])
    show = bars.start(progress, len(chosen) + 1, traced)

    show(0, "activations")
    key = jax.random.key(key) if isinstance(key, int | np.integer) else key
    weights = None if weights is None else jnp.asarray(weights)
    seen, outputs = capture(
        graph, chosen, rows, graph.consts, old, inputs, key, weights
    )
    jobs = [
        _Job(graph.sites[k], m, a, layers.held_out_rows(a.X.shape[1], held_out))
        for k, m, a in zip(chosen, asked, seen, strict=True)
    ]
    show(1, "solving")
    programs = [
        layers.program(job.method, job.place(old), job.seen, *job.form)
        for job in jobs
    ]
    solutions = batching.solve_all(
        programs, solver, memory, lambda sites: show(1 + sites, "solving")
    )
    new, entries = list(old), []
    for job, solution in zip(jobs, solutions, strict=True):
        entries.append(_finish(job, old, new, solution, on_failure == "keep"))
    deviation = _deviation(graph, graph.consts, new, inputs, outputs)
    report = Report(tuple(entries), skipped, deviation)
    if not traced:
        _check_results(report, on_failure, solver)
    kept = _masks(graph, chosen, new)
    return Pruned(_fill(tree, everything, new), _fill(tree, everything, kept), report)


class _Job(NamedTuple):
    """One site with its method and what it saw."""

    site: Site
    method: Method
    seen: Activation
    held: int  # rows kept from the solver

    @property
    def relu(self) -> bool:
        return self.site.response == "relu"

    @property
    def bias(self) -> str:
        return self.method.bias if self.site.bias is not None else "fixed"

    @property
    def form(self) -> tuple[bool, str, int]:
        return self.relu, self.bias, self.held

    def place(self, leaves: Sequence[Array]) -> Place:
        leaf, index = leaves[self.site.leaf], jnp.asarray(self.site.index)
        if self.bias == "fixed" or self.site.bias is None:
            return Place(leaf, index, None, None)
        bias, bias_index = self.site.bias
        return Place(leaf, index, leaves[bias], jnp.asarray(bias_index))


def _finish(
    job: _Job, old: list[Array], new: list[Array], solution: Solution, keep: bool
) -> SiteReport:
    """Writes one solution into ``new`` and says what it is."""
    leaf, bias = layers.write(job.place(new), job.seen, solution, job.bias, keep)
    new[job.site.leaf] = leaf
    if bias is not None and job.site.bias is not None:
        new[job.site.bias[0]] = bias
    measured = layers.measure(
        job.place(old), job.seen, leaf, bias, job.relu, job.held
    )
    lanes, d_in, d_out = job.site.index.shape
    return SiteReport(
        path=job.site.path,
        kind=job.site.kind,
        response=job.site.response,
        shape=(lanes, job.seen.X.shape[1] - job.held, d_in, d_out),
        size=job.site.index.size,
        epsilon=jnp.asarray(job.method.epsilon),
        result=jnp.max(solution.result),
        steps=jnp.max(solution.stats.steps),
        gap=jnp.max(solution.certificate.gap),
        violation=jnp.max(solution.certificate.violation),
        **measured._asdict(),
    )


def _settings(
    mode: str,
    solver: ADMM | None,
    rows: int,
    held_out: float,
    on_failure: str,
    memory: int,
) -> ADMM:
    solver = ADMM() if solver is None else solver
    for name, value, good, wanted in (
        ("mode", mode, mode in MODES, f"one of {MODES}"),
        ("solver", solver, isinstance(solver, ADMM), "an ADMM(...)"),
        ("rows", rows, isinstance(rows, int) and rows >= 1, "an integer of at least 1"),
        ("held_out", held_out, 0 <= held_out < 1, "a share in [0, 1)"),
        ("on_failure", on_failure, on_failure in ON_FAILURE, f"one of {ON_FAILURE}"),
        ("memory", memory, memory > 0, "a positive number of bytes"),
    ):
        if not good:
            raise MethodError(f"prune({name}={value!r}): expected {wanted}")
    return solver


def _check_finite(name: str, tree: Any, error: type[Exception]) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not is_array(leaf) or not known(leaf):
            continue
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        count = int(_not_finite(jnp.asarray(leaf)))
        if count:
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise error(
                f"{name}: {count} of {leaf.size} values of {where or 'the array'} are "
                "NaN or infinite; expected finite numbers. Nothing was pruned"
            )


@jax.jit
def _not_finite(array: Array) -> Array:
    return jnp.sum(~jnp.isfinite(array))


def _choose(
    graph: Graph, method: Any
) -> tuple[tuple[int, ...], list[Method], tuple[tuple[Path, str], ...]]:
    """Positions of the sites to prune, their methods, and all that is left alone."""
    paths = [site.path for site in graph.sites]
    others = [path for path in graph.paths if path not in paths]
    given, reasons = methods.assign(method, paths, others)
    chosen, asked, left = [], [], {}
    for k, (m, reason) in enumerate(zip(given, reasons, strict=True)):
        if m is None:
            left[paths[k]] = reason
        elif any(use.rows == 0 for use in graph.sites[k].uses):
            raise BatchError(
                f"batch: has no rows for {paths[k]}; expected at least one sample"
            )
        else:
            chosen.append(k)
            asked.append(m)
    skipped = {**dict(graph.skipped), **left}
    order = [path for path in graph.paths if path in skipped]
    return tuple(chosen), asked, tuple((path, skipped[path]) for path in order)


@functools.partial(jax.jit, static_argnames="graph")
def _deviation(
    graph: Graph,
    consts: Sequence[Array],
    leaves: Sequence[Array],
    batch: Sequence[Array],
    before: Sequence[Array],
) -> Array:
    """Relative change of all floating outputs together, Frobenius."""
    inputs = [*leaves, *batch]
    after, _ = jaxprs.evaluate(graph.flat, consts, inputs, {}, _never)
    off, size = jnp.zeros(()), jnp.zeros(())
    for new, old in zip(after, before, strict=True):
        if jnp.issubdtype(jnp.result_type(old), jnp.floating):
            wide = jnp.promote_types(jnp.result_type(old), "float32")
            new, old = jnp.asarray(new, wide), jnp.asarray(old, wide)
            off = off + jnp.sum((new - old) ** 2).astype(off.dtype)
            size = size + jnp.sum(old**2).astype(size.dtype)
    return jnp.sqrt(jnp.where(off == 0, 0, off / size))


def _never(*_: Any) -> None:
    raise AssertionError("no operation was asked for")


def _check_results(report: Report, on_failure: str, solver: ADMM) -> None:
    failed = [site for site in report.sites if int(site.result) != codes.CONVERGED]
    if not failed or on_failure == "keep":
        return
    lines = [
        f"{site.path}: {site.message} (gap {float(site.gap):.1e}, violation "
        f"{float(site.violation):.1e}, steps {int(site.steps)})"
        for site in failed
    ]
    text = (
        f"{len(failed)} of {len(report.sites)} layers did not reach tol={solver.tol:g}"
        f" in {solver.max_steps} steps: " + "; ".join(lines) + ". Raise "
        "solver=ADMM(max_steps=...) or tol, or take on_failure='keep' to leave such "
        "layers as trained"
    )
    if on_failure == "raise":
        raise SolveError(text)
    warnings.warn(text, stacklevel=3)


def _masks(graph: Graph, chosen: Sequence[int], new: Sequence[Array]) -> list[Array]:
    """True where an entry is kept; all of a leaf that was not pruned."""
    indices: dict[int, list[np.ndarray]] = {}
    for k in chosen:
        indices.setdefault(graph.sites[k].leaf, []).append(graph.sites[k].index)
    return [
        masks.kept(leaf, indices[i]) if i in indices else jnp.ones(leaf.shape, bool)
        for i, leaf in enumerate(new)
    ]


def _fill(tree: Any, everything: Sequence[Any], arrays: Sequence[Array]) -> Any:
    """The pytree with its array leaves replaced and the others as they are."""
    given = iter(arrays)
    leaves = [next(given) if is_array(leaf) else leaf for leaf in everything]
    return jax.tree.unflatten(tree, leaves)
