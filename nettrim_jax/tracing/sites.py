"""Finds the sites of any JAX function in its jaxpr, and reasons for all other leaves.

``trace`` walks the flat program of ``apply_fn`` once. A linear operation with an
operand that comes from one leaf by index maps only is a use of that leaf; the uses of
one matrix are one site. Every other use of a leaf is a reason not to prune it.

Knows jaxprs; knows no solver and no framework's modules.
"""

import dataclasses
import functools
import math
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np

from nettrim_jax._clip import NO_CLIP, Clip
from nettrim_jax._trees import (
    boxes_of,
    paths_of,
    require_alive,
    with_infinities,
)
from nettrim_jax.results import ApplyFnError, LayersError
from nettrim_jax.tracing import epilogue, jaxprs
from nettrim_jax.tracing.call import jaxpr_of
from nettrim_jax.tracing.epilogue import Bias, whole
from nettrim_jax.tracing.jaxprs import Flat
from nettrim_jax.tracing.signs import signs
from nettrim_jax.tracing.uses import REASONS, Seen, Use, Walk
from nettrim_jax.typing import ApplyFn, Batch, LeafPath, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """One problem: a stack of matrices of one leaf, and its uses.

    Attributes:
      leaf: position of the leaf in the flattened params.
      path: its path.
      kind: ``"dense"`` or ``"conv"``.
      clip: the limits between which its response passes.
      index: position of each entry in the leaf, ``[b, d_in, d_out]``.
      factor: what the program multiplies these entries by, ``[b, d_in, d_out]``; None
        if by nothing.
      bias: the leaf of a bias that may move and its entries, ``[b, d_out]``.
      uses: in order of execution; their rows together are the problem's.
      caution: the reason if it is only pruned when ``include`` names it.
    """

    leaf: int
    path: LeafPath
    kind: str
    clip: Clip
    index: np.ndarray
    factor: np.ndarray | None
    bias: tuple[int, np.ndarray] | None
    uses: tuple[Use, ...]
    caution: str | None

    @property
    def response(self) -> str:
        """``"relu"``, ``"clip"`` or ``"linear"``."""
        return self.clip.name

    @property
    def rows(self) -> int:
        """Rows that one batch gives each lane."""
        return sum(use.rows for use in self.uses)

    @property
    def layers(self) -> int:
        """Number of layers of the lanes: each step of a loop is its own layer."""
        return self.index.shape[0] // self.uses[0].folding.lanes

    @property
    def channels(self) -> int:
        """Number of input channels, which are at every place of a window."""
        return self.index.shape[1] // math.prod(self.uses[0].folding.window)


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A traced program with its sites.

    Equal networks compute the same and are compiled once.
    """

    flat: Flat
    consts: tuple[Any, ...]
    sites: tuple[Site, ...]
    skipped: tuple[tuple[LeafPath, str], ...]
    paths: tuple[LeafPath, ...]
    boxes: tuple[LeafPath, ...]  # of the leaves' boxes, where they have one
    upstream: dict[int, int]  # per slot, bits of the linear operations before it
    data: frozenset[int]  # slots that depend on the batch
    notes: tuple[str, ...]  # signs that it runs as in training

    @functools.cached_property
    def entries(self) -> int:
        """The number of values of all arrays."""
        avals = self.flat.avals.values()
        return sum(getattr(aval, "size", 0) for aval in avals)

    def __hash__(self) -> int:
        return hash(self.flat)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Network)
            and self.flat == other.flat
            and self.paths == other.paths
        )


def trace(
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    endless: Collection[int] = (),
) -> Network:
    """Traces ``apply_fn`` and finds its sites.

    Args:
      apply_fn: ``apply_fn(params, batch)``, traceable by JAX.
      params: a pytree with arrays; other leaves (functions, strings) stay as they are.
      batch: the second argument of ``apply_fn``; only shapes and dtypes matter here.
      endless: positions of arrays with infinities, among the arrays of the params and
        then the leaves of the batch.

    Returns:
      Sites in order of execution, and a reason for every other leaf of two or more
      dimensions.

    Raises:
      ApplyFnError: ``apply_fn`` is not callable or fails on these arguments.
      BatchError: a leaf of the batch holds no numbers.
      ParamsError: there is no floating leaf.
    """
    closed, arrays = jaxpr_of(apply_fn, params, batch)
    flat, consts = jaxprs.flatten(closed)
    require_alive(
        "apply_fn: among the arrays that it closes over", consts, ApplyFnError
    )
    slots = {flat.block.inputs[at] for at in endless}
    slots |= {flat.consts[at] for at in with_infinities(consts)}
    if slots:  # the same program is another network without them
        signature = f"{flat.signature} {sorted(slots)}"
        flat = dataclasses.replace(flat, signature=signature)
    walk = Walk(flat, paths_of(params), consts, frozenset(slots))
    sites = _Sites(walk, arrays)
    found = sites.find()
    readers = [(use.act, site.path) for site in found for use in site.uses]
    return Network(
        flat=flat,
        consts=tuple(consts),
        sites=found,
        skipped=sites.skipped(found),
        paths=walk.paths,
        boxes=boxes_of(params),
        upstream={slot: fact.upstream for slot, fact in walk.facts.items()},
        data=frozenset(slot for slot, fact in walk.facts.items() if fact.data),
        notes=signs(flat, len(arrays), readers),
    )


def require_sites(network: Network) -> None:
    """Raises LayersError with every reason if nothing can be pruned."""
    if not network.sites:
        reasons = "; ".join(f"{path}: {why}" for path, why in network.skipped)
        raise LayersError(
            "apply_fn: found no linear layer that can be pruned; expected a matrix "
            "product or a convolution of a leaf of params with activations. "
            + (f"Left: {reasons}" if reasons else "No leaf has two dimensions.")
        )


def _matrices(seen: Seen) -> np.ndarray:
    """Position in the leaf of each entry of a use's matrices, ``[b, d_in, d_out]``."""
    assert seen.index is not None
    return np.ascontiguousarray(seen.index.reshape(-1, *seen.index.shape[-2:]))


def _factor(seen: Seen) -> np.ndarray | None:
    """What these entries are multiplied by, ``[b, d_in, d_out]``."""
    if seen.factor is None:
        return None
    return seen.factor.reshape(-1, *seen.factor.shape[-2:])


def _alike(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


class _Sites:
    """Groups uses into sites; ``why_not`` has the reasons for all other leaves."""

    def __init__(self, walk: Walk, arrays: list[Any]):
        self.walk, self.arrays = walk, arrays
        self.why_not: dict[int, list[str]] = {}

    def find(self) -> tuple[Site, ...]:
        """Sites in order of execution."""
        by_leaf: dict[int, list[Seen]] = {}
        for seen in self.walk.seen:
            by_leaf.setdefault(seen.leaf, []).append(seen)
        reads = {leaf: len(all_seen) for leaf, all_seen in by_leaf.items()}
        found: list[Site] = []
        for leaf, all_seen in by_leaf.items():
            if not jnp.issubdtype(self.arrays[leaf].dtype, jnp.floating):
                self.why_not[leaf] = [f"its dtype is {self.arrays[leaf].dtype}"]
                continue
            linear = [seen for seen in all_seen if seen.use is not None]
            lookups = [seen.reason for seen in all_seen if seen.lookup]
            others = [seen.reason for seen in all_seen if seen.reason is not None]
            if not linear or len(others) > len(lookups):
                self.why_not[leaf] = list(dict.fromkeys(others))
                continue
            groups = self.groups(linear)
            if isinstance(groups, str):
                self.why_not[leaf] = [groups]
                continue
            caution = f"{lookups[0]}, too; include= prunes it" if lookups else None
            found.extend(self.site(group, reads, caution) for group in groups)
        return tuple(sorted(found, key=lambda site: site.uses[0].op.id))

    def fed(self, seen: Seen) -> bool:
        """Whether the batch matters for what a use multiplies its matrix with."""
        return seen.use is not None and self.walk.fact(seen.use.act).data

    def groups(self, linear: list[Seen]) -> list[list[Seen]] | str:
        """The uses of each matrix of one leaf, or the reason if there are none."""
        count = np.zeros(self.arrays[linear[0].leaf].size, np.int32)
        groups: dict[object, list[Seen]] = {}
        for seen in linear:
            index = _matrices(seen)
            same = groups.setdefault((index.shape, index.tobytes()), [])
            same.append(seen)
            if len(same) == 1:
                np.add.at(count, index.ravel(), 1)
        if count.max(initial=0) <= 1:
            all_seen = list(groups.values())
            if any(not _alike(_factor(g[0]), _factor(s)) for g in all_seen for s in g):
                return "multiplied by one constant here and by another there"
            if any(s.factor is not None and not s.factor.any() for s in linear):
                return "multiplied by zeros"
            # an initial state may be a constant, but not all that a layer sees
            found = [group for group in all_seen if any(map(self.fed, group))]
            return found or REASONS["no data"]
        if len(groups) > 1:
            return "used as one matrix here and as another there (tied weights)"
        return "repeated within one operation (broadcast)"

    def site(
        self, group: list[Seen], reads: dict[int, int], caution: str | None
    ) -> Site:
        """The site of all uses of one matrix."""
        uses = [seen.use for seen in group if seen.use is not None]
        if len(uses) > 1 and any(use.chain.scales for use in uses):
            # the scales of one matrix may differ from use to use
            uses = [
                dataclasses.replace(use, chain=whole(use.chain), visit=use.op.id)
                for use in uses
            ]
        index = _matrices(group[0])
        clips = {use.chain.clip for use in uses}
        moved, biases = self.bias(group, uses, index, reads)
        uses = [
            dataclasses.replace(use, chain=dataclasses.replace(use.chain, bias=bias))
            for use, bias in zip(uses, biases, strict=True)
        ]
        return Site(
            leaf=group[0].leaf,
            path=self.walk.paths[group[0].leaf],
            kind=uses[0].folding.kind,
            # a response that not all uses clip alike must be kept whole
            clip=clips.pop() if len(clips) == 1 else NO_CLIP,
            index=index,
            factor=_factor(group[0]),
            bias=moved,
            uses=tuple(uses),
            caution=caution,
        )

    def bias(
        self,
        group: list[Seen],
        uses: list[Use],
        index: np.ndarray,
        reads: dict[int, int],
    ) -> tuple[tuple[int, np.ndarray] | None, list[Bias | None]]:
        """The bias that moves with a matrix: added at every use and read nowhere else.

        Returns its leaf and entries, and the bias of each use.
        """
        free = frozenset(leaf for leaf, count in reads.items() if count == len(uses))
        biases: list[Bias | None] = []
        entries = []
        for seen, use in zip(group, uses, strict=True):
            bias = epilogue.find_bias(
                use.chain,
                use.folding,
                self.walk.facts,
                free,
                seen.loops,
                self.walk.flat.avals,
            )
            assert seen.index is not None
            head = seen.index.shape[: seen.loops]
            if bias is not None and use.live is not None:
                own = bias.index[..., use.live[1]]
                bias = dataclasses.replace(bias, index=own)
            if bias is None or bias.index.shape[: seen.loops] != head:
                return None, [None] * len(uses)
            biases.append(bias)
            entries.append((bias.leaf, bias.index.reshape(-1, index.shape[-1])))
        leaf, first = entries[0]
        if any(at != leaf or not np.array_equal(i, first) for at, i in entries):
            return None, [None] * len(uses)
        return entries[0], biases

    def skipped(self, sites: tuple[Site, ...]) -> tuple[tuple[LeafPath, str], ...]:
        """A reason for every leaf of two or more dimensions that has no site."""
        taken = {site.leaf for site in sites}
        out = []
        for leaf, (path, array) in enumerate(
            zip(self.walk.paths, self.arrays, strict=True)
        ):
            if leaf not in taken and len(array.shape) >= 2:
                reasons = self.why_not.get(leaf, ["apply_fn does not use it"])
                out.append((path, "; ".join(reasons)))
        return tuple(out)
