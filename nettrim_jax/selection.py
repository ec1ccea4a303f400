"""Which of the layers that were found are to be pruned, and by which method.

Knows the graph's sites and methods; knows no solver and no arrays.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nettrim_jax.calibration import batches
from nettrim_jax.methods import nettrim
from nettrim_jax.methods.nettrim import Asked, Method, NetTrim
from nettrim_jax.report import Listing, SiteInfo
from nettrim_jax.results import BatchError, MethodError
from nettrim_jax.tracing.sites import Graph, Site, trace
from nettrim_jax.typing import ApplyFn, Batch, Params, Path

# a regular expression searched in the path, or a function of the layer
Selector = str | Callable[[SiteInfo], bool]


def sites(
    params: Params,
    apply_fn: ApplyFn,
    batch: Batch,
    *,
    method: Asked | Mapping[str, Asked | None] | None = None,
    include: Selector | None = None,
    exclude: Selector | None = None,
) -> Listing:
    """What :func:`prune` would take with these arguments, and what not; solves nothing.

    Args:
      params: a pytree of arrays.
      apply_fn: the network, ``apply_fn(params, batch)``.
      batch: what ``apply_fn`` takes, or a loader, of which the first batch is read;
        only shapes and dtypes matter.
      method: as for :func:`prune`.
      include: as for :func:`prune`.
      exclude: as for :func:`prune`.

    Returns:
      The layers in order of execution, and a reason for every other leaf of two or
      more dimensions.

    Raises:
      NetTrimError: as :func:`prune` does.

    Example:
      >>> import jax
      >>> import nettrim_jax as nt
      >>> params = {"in": jax.numpy.ones((8, 4)), "out": jax.numpy.ones((4, 2))}
      >>> apply_fn = lambda p, x: jax.nn.relu(x @ p["in"]) @ p["out"]
      >>> print(nt.sites(params, apply_fn, jax.numpy.ones((100, 8)), exclude="out"))
      layer  kind response  lanes      rows   d_in  d_out      size
      in    dense     relu      1       100      8      4        32
      all                                                        32
      left alone: out: exclude='out'
    """
    graph = trace(apply_fn, params, next(batches.batches(batch)))
    asked, skipped = choose(graph, method, include, exclude)
    return Listing(tuple(_info(graph.sites[k]) for k in asked), skipped)


def _info(site: Site) -> SiteInfo:
    lanes, d_in, d_out = site.index.shape
    shape = (lanes, site.rows, d_in, d_out)
    return SiteInfo(site.path, site.kind, site.response, shape, site.index.size)


def choose(
    graph: Graph, method: Any, include: Selector | None, exclude: Selector | None
) -> tuple[dict[int, Method], tuple[tuple[Path, str], ...]]:
    """The method of each site to prune, by position, and all that is left alone.

    Args:
      graph: the layers that were found.
      method: one method, or a mapping from regular expressions to a method or None.
      include: only these; also those that are only pruned if it is asked for.
      exclude: none of these.

    Raises:
      MethodError: a method or selector is of another type, or matches nothing.
      BatchError: the batch has no rows.
    """
    method = NetTrim() if method is None else method
    paths = [site.path for site in graph.sites]
    others = [path for path in graph.paths if path not in paths]
    infos = [_info(site) for site in graph.sites]
    taken = _matches("include", include, infos, others)
    left_out = _matches("exclude", exclude, infos, others)
    given, reasons = nettrim.assign(method, paths, others)
    for k, site in enumerate(graph.sites):
        if taken is None and site.caution is not None:
            given[k], reasons[k] = None, site.caution
        elif taken is not None and not taken[k]:
            given[k], reasons[k] = None, f"include={_name(include)} leaves it out"
        elif left_out is not None and left_out[k]:
            given[k], reasons[k] = None, f"exclude={_name(exclude)}"
    asked: dict[int, Method] = {}
    left: dict[Path, str] = {}
    for k, (m, reason) in enumerate(zip(given, reasons, strict=True)):
        if m is None:
            left[paths[k]] = reason
        elif graph.sites[k].rows == 0:
            raise BatchError(
                f"batch: has no rows for {paths[k]}; expected at least one sample"
            )
        else:
            try:
                m.fits(graph.sites[k].index.shape)
            except MethodError as error:
                raise MethodError(f"{paths[k]}: {error}") from None
            asked[k] = m
    biases = (graph.sites[k].bias for k, m in asked.items() if m.bias != "fixed")
    moved = {bias[0] for bias in biases if bias is not None}
    skipped = {**dict(graph.skipped), **left}
    for leaf in moved:
        if graph.paths[leaf] in skipped:
            skipped[graph.paths[leaf]] = "a bias: it moves, but is not pruned"
    order = [path for path in graph.paths if path in skipped]
    return asked, tuple((path, skipped[path]) for path in order)


def _matches(
    name: str,
    selector: Selector | None,
    infos: Sequence[SiteInfo],
    others: Sequence[Path],
) -> list[bool] | None:
    if selector is None:
        return None
    if callable(selector):
        return [bool(selector(info)) for info in infos]
    try:
        compiled = re.compile(selector)
    except (re.error, TypeError) as error:
        raise MethodError(
            f"{name}={selector!r}: expected a regular expression or a function of a "
            f"layer ({error})"
        ) from None
    paths = [info.path for info in infos]
    if not any(compiled.search(path) for path in (*paths, *others)):
        raise MethodError(
            f"{name}={selector!r} matches no layer; the layers are {', '.join(paths)}"
        )
    return [compiled.search(path) is not None for path in paths]


def _name(selector: Any) -> str:
    return getattr(selector, "__name__", repr(selector))
