"""Selects the layers to prune, and the method of each.

Knows the network's sites and methods; knows no solver and no arrays.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nettrim_jax.calibration.batches import batches
from nettrim_jax.methods.base import Method, is_method, kind_of
from nettrim_jax.methods.budget import Budget, Share
from nettrim_jax.methods.nettrim import NetTrim
from nettrim_jax.methods.patterns import Pattern, is_pattern, share_of
from nettrim_jax.methods.reconstruct import Reconstruct
from nettrim_jax.methods.sparsest import Sparsest
from nettrim_jax.report import Listing, SiteInfo
from nettrim_jax.results import BIAS, BatchError, MethodError
from nettrim_jax.tracing.entries import Matrices
from nettrim_jax.tracing.sites import Network, Site, trace
from nettrim_jax.typing import ApplyFn, Batch, LeafPath, Params

Asked = Method | Pattern  # a pattern means Reconstruct(pattern)
# a regular expression for the path, or a function of the layer
Selector = str | Callable[[SiteInfo], bool]
UNMATCHED = "no pattern of method matches"  # the reason of such a layer
Names = tuple[LeafPath, LeafPath]  # the path of a leaf, and that of its box


def sites(
    params: Params,
    apply_fn: ApplyFn,
    batch: Batch,
    *,
    method: Asked | Mapping[str, Asked | None] | None = None,
    include: Selector | None = None,
    exclude: Selector | None = None,
) -> Listing:
    """Lists the layers that :func:`prune` would prune, without solving anything.

    Args:
      params: a pytree of arrays.
      apply_fn: the network, ``apply_fn(params, batch)``.
      batch: the second argument of ``apply_fn``, or a loader, of which the first batch
        is read; only shapes and dtypes matter.
      method: as for :func:`prune`.
      include: as for :func:`prune`.
      exclude: as for :func:`prune`.

    Returns:
      The layers in order of execution, and a reason for every other leaf of two or
      more dimensions; ``print`` shows both.

    Raises:
      NetTrimError: as for :func:`prune`.

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
    network = trace(apply_fn, params, next(batches(batch)))
    asked, skipped = choose(network, method, include, exclude, listed=True)
    found = [network.sites[k] for k in asked]
    matrices = tuple(Matrices.of(network, site) for site in found)
    return Listing(tuple(map(_info, found)), skipped, network.notes, matrices)


def _info(site: Site) -> SiteInfo:
    lanes, d_in, d_out = site.index.shape
    shape = (lanes, site.rows, d_in, d_out)
    return SiteInfo(site.path, site.kind, site.response, shape, site.index.size)


def within_budget(method: Any, deviation: Any, drop: Any, metric: Any) -> Any:
    """The method, or the sparsest within a budget of the network if none is given.

    Raises:
      MethodError: a method and a budget are given.
    """
    if deviation is None and drop is None and metric is None:
        return method
    if method is None:
        return Sparsest(deviation=deviation, drop=drop, metric=metric)
    raise MethodError(
        "prune: method and a budget of the network are given; give the budget to the "
        "method, as in method=Reconstruct(Sparsity(), deviation=0.02) or "
        "NetTrim(deviation=0.02), or leave the method out"
    )


def wishes(method: Any) -> list[tuple[Any, Budget | Share]]:
    """The budgets and shares of all methods, each with its method as given."""
    given = method.values() if isinstance(method, Mapping) else [method]
    found = [(one, _shared(one)) for one in given]
    return [(one, shared) for one, shared in found if shared is not None]


def _shared(given: Any) -> Budget | Share | None:
    if is_pattern(given):
        return share_of(given)
    return given.shared if is_method(given) else None


def choose(
    network: Network,
    method: Any,
    include: Selector | None,
    exclude: Selector | None,
    cascade: bool = False,
    *,
    listed: bool = False,
) -> tuple[dict[int, Method], tuple[tuple[LeafPath, str], ...]]:
    """The method of each site to prune, by position, and the leaves left alone.

    Args:
      network: the traced network.
      method: one method, or a mapping from regular expressions to a method or None.
      include: selects sites, also those with a ``caution``; None selects all others.
      exclude: selects sites that are not pruned.
      cascade: whether layers are pruned in order of execution.
      listed: whether the choice is only to be listed, so that it may be empty.

    Raises:
      MethodError: a method or selector is of another type, or matches nothing; or no
        layer is left to prune, though ``None`` and ``exclude`` do not name them all.
      BatchError: the batch has no rows.
    """
    method = NetTrim() if method is None else method
    names = [_names(network, site.leaf) for site in network.sites]
    paths = [site.path for site in network.sites]
    mine = {site.leaf for site in network.sites}
    others = [_names(network, k) for k in range(len(network.paths)) if k not in mine]
    infos = [_info(site) for site in network.sites]
    taken = _matches("include", include, infos, names, others)
    left_out = _matches("exclude", exclude, infos, names, others)
    given, reasons = assign(method, names, others)
    both = zip(given, reasons, strict=True)
    named = [m is None and reason != UNMATCHED for m, reason in both]
    for k, site in enumerate(network.sites):
        if taken is None and site.caution is not None:
            given[k], reasons[k] = None, site.caution
        elif taken is not None and not taken[k]:
            given[k], reasons[k] = None, f"include={_name(include)} leaves it out"
        elif left_out is not None and left_out[k]:
            given[k], reasons[k], named[k] = None, f"exclude={_name(exclude)}", True
    asked: dict[int, Method] = {}
    left: dict[LeafPath, str] = {}
    unfit: dict[LeafPath, MethodError] = {}
    for k, (m, reason) in enumerate(zip(given, reasons, strict=True)):
        if m is None:
            left[paths[k]] = reason
        elif network.sites[k].rows == 0:
            raise BatchError(
                f"batch: has no rows for {paths[k]}; expected at least one sample"
            )
        else:
            try:
                asked[k] = m.bind(kind_of(network.sites[k], m), cascade)
            except MethodError as error:
                unfit[paths[k]] = error
    if unfit:
        raise _unfit(unfit, all_of_them=not asked)
    if not (asked or listed or all(named)):
        reasons = "; ".join(f"{path}: {why}" for path, why in left.items())
        raise MethodError(
            f"method: no layer is left to prune ({reasons}); give the layers that "
            "nothing matches a method, as by '.*': NetTrim() at the end of a dict, and "
            "those to leave alone None or exclude="
        )
    biases = (network.sites[k].bias for k, m in asked.items() if m.bias != "fixed")
    moved = {bias[0] for bias in biases if bias is not None}
    skipped = {**dict(network.skipped), **left}
    for leaf in moved:
        if network.paths[leaf] in skipped:
            skipped[network.paths[leaf]] = f"{BIAS}: it moves, but is not pruned"
    order = [path for path in network.paths if path in skipped]
    return asked, tuple((path, skipped[path]) for path in order)


def _names(network: Network, leaf: int) -> Names:
    """The paths by which an expression finds a leaf: its own, and that of its box."""
    return network.paths[leaf], network.boxes[leaf]


def _finds(compiled: re.Pattern, names: Names) -> bool:
    return any(compiled.search(name) for name in names)


def _unfit(errors: Mapping[LeafPath, MethodError], all_of_them: bool) -> MethodError:
    """One error for all layers that their methods do not fit."""
    text = "; ".join(f"{path}: {error}" for path, error in errors.items())
    if not all_of_them and len(errors) > 1:
        paths = "|".join(map(re.escape, errors))
        text += f". All of these are left out by exclude={f'^({paths})$'!r}"
    return MethodError(text)


def _matches(
    name: str,
    selector: Selector | None,
    infos: Sequence[SiteInfo],
    names: Sequence[Names],
    others: Sequence[Names],
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
    if not any(_finds(compiled, one) for one in (*names, *others)):
        paths = ", ".join(info.path for info in infos)
        raise MethodError(
            f"{name}={selector!r} matches no layer; the layers are {paths}"
        )
    return [_finds(compiled, one) for one in names]


def _name(selector: Any) -> str:
    return getattr(selector, "__name__", repr(selector))


def assign(
    method: Any, names: Sequence[Names], others: Sequence[Names]
) -> tuple[list[Method | None], list[str]]:
    """The method of every site, by ``re.search`` on its paths, first match wins.

    Args:
      method: one method, or a mapping from regular expressions to a method or None.
      names: the sites' paths, each with that of its box.
      others: those of what cannot be pruned; an expression may match these alone.

    Returns:
      A method or None per site, and the reason for None.

    Raises:
      MethodError: a value is no method, or an expression is wrong or matches nothing.
    """
    if not isinstance(method, Mapping):
        return [_checked(method, "method")] * len(names), [""] * len(names)
    paths = [path for path, _ in names]
    table = []
    for pattern, value in method.items():
        try:
            compiled = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise MethodError(
                f"method: {pattern!r} is no regular expression ({error})"
            ) from None
        if value is not None:
            value = _checked(value, f"method[{pattern!r}]")
        if not any(_finds(compiled, one) for one in (*names, *others)):
            raise MethodError(
                f"method: the regular expression {pattern!r} matches no layer; the "
                f"layers are {', '.join(paths)}"
            )
        table.append((pattern, compiled, value))
    first = [
        next((i for i, (_, c, _) in enumerate(table) if _finds(c, one)), None)
        for one in names
    ]
    for i, (pattern, compiled, _) in enumerate(table):
        hits = [one[0] for one in names if _finds(compiled, one)]
        if hits and i not in first:
            raise MethodError(
                f"method: all layers that {pattern!r} matches ({', '.join(hits)}) are "
                "matched by expressions before it, and the first match wins; put it "
                "before them or leave it out"
            )
    chosen: list[Method | None] = []
    reasons = []
    for i in first:
        pattern, _, value = (None, None, None) if i is None else table[i]
        chosen.append(value)
        reasons.append(UNMATCHED if i is None else f"method[{pattern!r}] is None")
    return chosen, reasons


def _checked(value: Any, where: str) -> Method:
    value = Reconstruct(value) if is_pattern(value) else value
    if not is_method(value):
        raise MethodError(
            f"{where}: expected a method such as NetTrim(epsilon=0.1), a pattern such "
            "as Sparsity(0.9), or a dict from regular expressions to these, got "
            f"{value!r}"
        )
    value.check()
    return value
