"""``share``: weights of a pruned network that share few values, and their codes.

Knows the arguments and the steps of a fit; no package knows it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from nettrim_jax import _checks, _room, selection
from nettrim_jax._trees import is_array, path_of
from nettrim_jax.methods.codebook import MOST, Codebook
from nettrim_jax.methods.codes import Codes, codes_of, groups_of, most_of, ranks_of
from nettrim_jax.refitting import Adapted, Fit, Progress, Settings, adapted
from nettrim_jax.report.sharing import SharedSite, ShareReport
from nettrim_jax.results import MethodError, ParamsError, made_here
from nettrim_jax.typing import ApplyFn, Array, Batch, LeafPath, Params, Weights

CALL = "share(pruned, params, apply_fn, batch)"
BITS = 5  # of a code, if nothing else is said
Bits = int | Mapping[str, int | None]


class Shared(NamedTuple):
    """The result of :func:`share`.

    Attributes:
      params: the new params, with the given tree, shapes and dtypes. In each layer the
        weights that are not zero have few values; removed weights are exact zeros.
      mask: the mask of the pruned params.
      codes: the layers' leaves as :class:`Codes`, by path. A leaf of which a layer
        failed, and stayed as it was with too many values, is missing. Within
        ``jax.jit`` it is there, and the values of that layer's codes are NaN.
      report: the layers, and the change of the output.
    """

    params: Params
    mask: Params
    codes: dict[LeafPath, Codes]
    report: ShareReport


def share(
    pruned: Any,
    params: Params,
    apply_fn: ApplyFn,
    batch: Batch,
    *,
    bits: Bits | None = None,
    bytes: int | None = None,
    per: str = "leaf",
    bias: str = "free",
    mode: str = "cascade",
    rows: int = 4096,
    held_out: float = 0.1,
    weights: Weights | None = None,
    include: selection.Selector | None = None,
    exclude: selection.Selector | None = None,
    key: int | Array = 0,
    on_failure: str = "raise",
    progress: Progress = None,
    memory: int = 2**31,
    batches: int | None = None,
) -> Shared:
    r"""Lets the weights of each layer share few values, without labels.

    .. math::
        \min_{c, k} \; \|X Q + b - Z\|_F^2 + \lambda \|Q - W\|_F^2
        \quad\text{s.t.}\quad Q_{ij} = c_{k_{ij}} \;\text{where}\; W_{ij} \ne 0,
        \; Q_{ij} = 0 \;\text{elsewhere}

    is the problem of one layer, with its weights ``W`` and its response ``Z`` in the
    pruned network, and its inputs ``X``. Values :math:`c` start from k-means (Han, Mao
    and Dally, 2016). Weights are given a value one input after another, and later ones
    make up for the difference, as in OBC and GPTQ (Frantar et al., 2022, 2023); then
    values are fitted to the response and weights given other ones, by turns. The
    problem is not convex, and there is no certificate.

    Layers are those that :func:`prune` finds; other leaves stay, apart from the biases
    of layers. Zeros stay zero. With ``bits``, ``share`` works within ``jax.jit`` and
    under ``jax.vmap``, where values raise no errors; with ``bytes`` it does not.

    Args:
      pruned: what :func:`prune`, :func:`refit` or :func:`recover` returned, or params.
      params: the trained params, from before the pruning; the report says how far the
        output is from theirs. The response to keep is that of ``pruned``, which already
        was fitted to theirs: to fit it again layer by layer made a network worse.
      apply_fn: the network, ``apply_fn(params, batch)``.
      batch: the second argument of ``apply_fn``, or a loader of such batches.
      bits: number of bits of a code, from 1 to 8, by default 5: there are at most
        ``2**bits - 1`` values beside zero. Or a dict from regular expressions to these
        or ``None``, for layers to leave alone, as ``method`` of :func:`prune`.
      bytes: in the place of ``bits``, the largest size of the whole file that
        :func:`save` writes of the result. The bits of each layer, from 1 to 8, are
        chosen by what they save in the file and what they do to the output. For that
        every layer is solved with each number of bits on half of the rows, and measured
        on a quarter; all batches of a loader are kept.
      per: ``"leaf"``: all weights of a matrix share values; each matrix of a stack (of
        a scan, of experts) has values of its own. ``"unit"``: so does each unit.
      bias: ``"free"``: a layer's own bias moves. ``"fixed"``: it stays.
      mode: ``"cascade"``: in order of execution, every layer has inputs from the
        network with values shared so far. ``"parallel"``: every layer has inputs from
        the pruned network.
      rows: as for :func:`prune`.
      held_out: as for :func:`prune`.
      weights: as for :func:`prune`.
      include: as for :func:`prune`.
      exclude: as for :func:`prune`.
      key: as for :func:`prune`.
      on_failure: as for :func:`refit`; layers that fail stay as they were.
      progress: as for :func:`prune`.
      memory: as for :func:`prune`.
      batches: as for :func:`prune`.

    Returns:
      The params, the mask, the codes of each leaf, and the report.

    Raises:
      NetTrimError: as for :func:`prune`.

    Example:
      >>> import jax
      >>> import nettrim_jax as nt
      >>> w = jax.random.normal(jax.random.key(0), (8, 4))
      >>> x = jax.random.normal(jax.random.key(1), (200, 8))
      >>> apply_fn = lambda w, x: jax.nn.relu(x @ w)
      >>> pruned = nt.prune(w, apply_fn, x, method=nt.Sparsity(0.5))
      >>> shared = nt.share(pruned, w, apply_fn, x, bits=2)
      >>> len(set(shared.params[pruned.mask].tolist())) <= 3
      True
      >>> bool((shared.codes["params"].decode() == shared.params).all())
      True
    """
    if not (bits is None or bytes is None):
        raise MethodError(
            f"share(bits={bits!r}, bytes={bytes!r}): expected one of them: bits of "
            "each layer, or bytes of the whole file, for which bits are chosen"
        )
    ours = made_here(pruned, "params", "mask")
    given = pruned.params if ours else pruned
    _require_like(params, given)

    def choice(bits: Any) -> Callable[[Any], Any]:
        def choose(network: Any) -> Any:
            ways = _methods(bits, per, bias)
            try:
                chosen, skipped = selection.choose(
                    network, ways, include, exclude, mode == "cascade"
                )
            except MethodError as error:
                raise MethodError(f"share: {error}") from None
            for k in chosen:
                _require_one_factor(network.sites[k])
            return chosen, skipped

        return choose

    settings = Settings(
        *(mode, rows, held_out, weights, key, on_failure, progress, memory, batches)
    )
    fit = Fit(given, params, apply_fn, batch, settings, "share")
    size = budget = None
    if bytes is None:
        done = adapted(fit, choice(BITS if bits is None else bits))
    else:
        _checks.at_least(1, "share", bytes=bytes)
        budget, ways = int(bytes), [choice(n) for n in range(MOST, 0, -1)]
        done, size = _room.within(budget, fit, ways)
    codes, counts = _coded(done)
    mask = pruned.mask if ours else done.pruned.mask
    report = dataclasses.replace(_report(done, counts), bytes=size, budget=budget)
    return Shared(done.pruned.params, mask, codes, report)


def _methods(bits: Any, per: str, bias: str) -> Any:
    """The method of each layer, or one for all."""
    try:
        if not isinstance(bits, Mapping):
            return Codebook(bits, per, bias)
        return {
            name: None if one is None else Codebook(one, per, bias)
            for name, one in bits.items()
        }
    except MethodError as error:
        text = str(error).removeprefix("Codebook")
        raise MethodError(f"share{text}") from None


def _require_like(params: Params, pruned: Params) -> None:
    """Raises ParamsError unless the trained params are like the pruned ones."""
    kinds = []
    for tree in (params, pruned):
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        kinds.append(
            {
                path_of(keys): f"{leaf.dtype} {list(leaf.shape)}"
                if is_array(leaf)
                else type(leaf).__name__
                for keys, leaf in leaves
            }
        )
    got, wanted = kinds
    if got != wanted:
        path = next(p for p in [*wanted, *got] if got.get(p) != wanted.get(p))
        raise ParamsError(
            f"share: params have {path or 'the array'} as {got.get(path, 'no leaf')}, "
            f"and the pruned ones as {wanted.get(path, 'no leaf')}; the order is "
            f"{CALL}, with the params from before the pruning second"
        )


def _require_one_factor(site: Any) -> None:
    """Raises MethodError if weights are multiplied by constants that differ."""
    if site.factor is None:
        return
    factors = np.unique(site.factor[site.factor != 0])
    if len(factors) > 1:
        raise MethodError(
            f"share: {site.path}: the network multiplies these weights by constants "
            f"from {factors[0]:.3g} to {factors[-1]:.3g}, so equal ones do not act "
            "alike; put the constants into the weights, or leave the layer out with "
            "exclude="
        )


def _coded(done: Adapted) -> tuple[dict[LeafPath, Codes], dict[int, Array]]:
    """The codes of all leaves, and the number of values of each site, as it is now."""
    network, asked = done.start.first.network, _asked(done)
    leaves = [a for a in jax.tree.leaves(done.pruned.params) if is_array(a)]
    members: dict[int, list[int]] = {}
    for k in asked:
        members.setdefault(network.sites[k].leaf, []).append(k)
    codes, counts = {}, {}
    for leaf, sites in members.items():
        indices = [network.sites[k].index for k in sites]
        apart = asked[sites[0]].per == "unit"
        group = groups_of(indices, leaves[leaf].shape, apart)
        most = max(2 ** asked[k].bits - 1 for k in sites)
        ranks = ranks_of(leaves[leaf], group)
        found = codes_of(leaves[leaf], group, most, ranks)
        for k in sites:
            counts[k] = most_of(ranks, network.sites[k].index)
        if found is not None:
            codes[network.paths[leaf]] = found
    return codes, counts


def _asked(done: Adapted) -> dict[int, Codebook]:
    """The method of each site."""
    return cast(dict[int, Codebook], done.start.asked)


def _report(done: Adapted, counts: Mapping[int, Array]) -> ShareReport:
    report = done.pruned.report
    sites = tuple(
        SharedSite(
            path=site.path,
            bits=method.bits,
            size=site.size,
            nonzeros=site.nonzeros,
            values=counts[k],
            error=site.error,
            result=site.result,
            held_out_error=site.held_out_error,
        )
        for (k, method), site in zip(_asked(done).items(), report.sites, strict=True)
    )
    return ShareReport(
        *(sites, report.skipped, done.before, done.after, report.deviation)
    )
