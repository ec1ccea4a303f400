"""A batch as samples, and the programs of what is differentiated for each of them.

A sample is a batch of one, an entry along the first axis that all arrays of a batch
share. The outputs of the network are found in the program of a loss that calls it.

Knows the network's parts; knows no solver and no method.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax._trees import is_array
from nettrim_jax.calibration.batches import Part
from nettrim_jax.calibration.gradient import Loss
from nettrim_jax.results import MethodError
from nettrim_jax.tracing import jaxprs, matching, untyped
from nettrim_jax.tracing.jaxprs import Flat, Literal, Op
from nettrim_jax.tracing.outer import Outer, Windowed, outer_of
from nettrim_jax.typing import Array, Batch, Params

ENTRIES = 2**25  # entries that one call may hold for all of its samples
SAMPLES = 256  # the most of one call
FEW = 16  # outputs of a sample up to which each has a backward pass of its own
PROBES = 64  # random directions of a batch at least, if it has fewer samples than this


@dataclasses.dataclass(frozen=True)
class Curve:
    """What is differentiated for one sample, and by what its outputs are weighed.

    Attributes:
      flat: the program of the leaves and a sample.
      outputs: which of its outputs count; None for the results of ``cut``.
      cut: of a loss, the operations that make the network's outputs; empty without one.
      count: the number of all these outputs' entries.
    """

    flat: Flat
    outputs: tuple[int, ...] | None
    cut: tuple[int, ...]
    count: int

    @property
    def entries(self) -> int:
        """How many values its arrays have, see ``compiled``."""
        sizes = (getattr(aval, "size", 0) for aval in self.flat.avals.values())
        return sum(sizes)

    def values(
        self,
        inputs: list[Any],
        consts: Sequence[Any],
        outer: Mapping[int, Outer | Windowed],
        nudges: Mapping[int, Array],
    ) -> tuple[list[Array], dict[int, Array]]:
        """The outputs of one sample, and the rows that some leaves meet.

        Args:
          inputs: the leaves and the arrays of the sample.
          consts: the constants of the program.
          outer: the products of these leaves.
          nudges: what is added to the products, by leaf.
        """
        rows = {one.op.id: one.row for one in outer.values()}

        def look(op: Op, read: Any, steps: Any) -> list[Array]:
            return [read(op.outputs[0]), *(read(rows[i]) for i in [op.id] if i in rows)]

        given, seen = jaxprs.evaluate(
            *(self.flat, consts, inputs, {*self.cut, *rows}, look),
            nudges={outer[k].op.id: nudge for k, nudge in nudges.items()},
        )
        met = {k: seen[one.op.id][1] for k, one in outer.items()}
        if self.outputs is None:
            return [seen[id_][0] for id_ in self.cut], met
        return [given[i] for i in self.outputs], met

    def still(self, outer: Outer | Windowed) -> Array:
        """Nothing, in the shape of the result of a product."""
        aval = self.flat.avals[outer.op.outputs[0]]
        return jnp.zeros(aval.shape, aval.dtype)

    def bends(
        self,
        inputs: Callable[[Array], list[Any]],
        consts: Sequence[Any],
        values: list[Array],
        picks: Array,
    ) -> Any:
        """Products with the second derivatives of the loss by some samples' outputs.

        Args:
          inputs: the leaves and the arrays of one sample, by its number.
          consts: the constants of the program.
          values: the outputs, ``[s, ...]``.
          picks: numbers of the samples, ``[s]``.
        """
        if not self.cut:
            return None

        def loss(moved: list[Array], pick: Array) -> Any:
            nudges = dict(zip(self.cut, moved, strict=True))
            out = jaxprs.evaluate(self.flat, consts, inputs(pick), nudges=nudges)
            return out[0][0]

        slopes = jax.vmap(jax.grad(loss))
        still = [jnp.zeros_like(a) for a in values]
        return jax.vjp(lambda moved: slopes(moved, picks), still)[1]


class Samples(NamedTuple):
    """How a batch falls into samples; hashable."""

    count: int
    split: tuple[bool, ...]  # which arrays have an entry for each sample
    directions: int
    exact: bool  # whether the directions are all there are
    at_once: int


class Arrays(NamedTuple):
    """The arrays of a batch and of its program."""

    leaves: list[Array]
    batch: list[Array]
    consts: list[Any]
    weights: Array | None  # [count, ...], zero for what does not count
    key: Array


class Taken(NamedTuple):
    """A batch with the program of its samples."""

    curve: Curve
    samples: Samples
    arrays: Arrays


def outputs_of(
    part: Part, loss: Loss | None, moved: Collection[int], every: bool = False
) -> Taken:
    """The network's outputs for each sample of a batch, and the loss of them.

    Args:
      part: the batch.
      loss: the loss; None for the outputs themselves.
      moved: the leaves to differentiate by.
      every: whether each output has a direction of its own, however many there are.

    Raises:
      MethodError: the loss is not one of the outputs of ``apply_fn``, or there are no
        derivatives.
    """
    split = _split(part.batch)
    for whole in (False, True):
        try:
            flat, consts = _traced(part, part.model.apply_fn, split)
            break
        except Exception:
            # a network of one number of samples only
            if whole or not any(split):
                raise
            split = (False,) * len(split)
    curve = _floating(flat)
    if loss is not None:
        curve, consts = _within(part, loss, split, (flat, consts), moved)
    return _taken(part, (curve, consts), split, moved, every)


def loss_of(part: Part, loss: Loss, moved: Collection[int]) -> Taken:
    """The loss for each sample of a batch, as outputs of one entry."""
    split = _split(part.batch)
    flat, consts = _traced(part, loss, split)
    _require_one(flat)
    return _taken(part, (_floating(flat), consts), split, moved, False)


def _split(batch: Sequence[Array]) -> tuple[bool, ...]:
    """Which arrays of a batch have an entry for each sample; none if sizes differ."""
    sizes = {a.shape[0] for a in batch if a.ndim}
    return tuple(bool(a.ndim) and len(sizes) == 1 for a in batch)


def _traced(
    part: Part, function: Callable[[Params, Batch], Any], split: Sequence[bool]
) -> tuple[Flat, list[Any]]:
    """The program of a function of params and a batch, for one sample."""
    tree = jax.tree.structure(part.given)

    def call(leaves: list[Any], batch: list[Any]) -> Any:
        answer = function(part.model.filler(leaves), jax.tree.unflatten(tree, batch))
        return [jnp.asarray(a) for a in jax.tree.leaves(answer) if _is_number(a)]

    sample = [
        jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype) if own else a
        for a, own in zip(part.batch, split, strict=True)
    ]
    return jaxprs.flatten(untyped.make_jaxpr(call, part.model.given, sample))


def _is_number(leaf: Any) -> bool:
    """Whether a part of an answer has numbers."""
    return is_array(leaf) or isinstance(leaf, int | float)


def _floating(flat: Flat) -> Curve:
    avals = list(map(flat.aval, flat.block.outputs))
    mine = [i for i, a in enumerate(avals) if jnp.issubdtype(a.dtype, jnp.floating)]
    return Curve(flat, tuple(mine), (), sum(math.prod(avals[i].shape) for i in mine))


def _within(
    part: Part,
    loss: Loss,
    split: Sequence[bool],
    network: tuple[Flat, list[Any]],
    moved: Collection[int],
) -> tuple[Curve, list[Any]]:
    """The loss as a function of the network's outputs, which its program contains."""
    flat, consts = _traced(part, loss, split)
    _require_one(flat)
    inner = matching.names_of(*network)
    outputs = network[0].block.outputs
    wanted = {inner[ref] for ref in outputs if not isinstance(ref, Literal)}
    cut = matching.cut_of(flat, matching.names_of(flat, consts), wanted)
    ids = tuple(op.id for op in cut)
    past = matching.around(flat, ids, moved)
    if past:
        paths = ", ".join(part.network.paths[i] for i in sorted(past)[:3])
        raise MethodError(
            "loss: expected loss(params, batch) to depend on params through the "
            f"outputs of apply_fn alone, but {paths} matter otherwise. Call the same "
            "apply_fn in it, and leave penalties of weights out"
        )
    count = sum(math.prod(flat.avals[op.outputs[0]].shape) for op in cut)
    return Curve(flat, None, ids, count), consts


def _require_one(flat: Flat) -> None:
    avals = list(map(flat.aval, flat.block.outputs))
    if len(avals) != 1 or avals[0].shape != ():
        raise TypeError("it gives no single number")
    if not jnp.issubdtype(avals[0].dtype, jnp.floating):
        raise TypeError(f"it gives {avals[0].dtype}, no floating number")


def _taken(
    part: Part,
    program: tuple[Curve, list[Any]],
    split: tuple[bool, ...],
    moved: Collection[int],
    every: bool,
) -> Taken:
    curve, consts = program
    weights = None if part.weights is None else part.weights.values
    count = next((len(a) for a, own in zip(part.batch, split, strict=True) if own), 1)
    if weights is not None and any(split) and len(weights) != count:
        raise TypeError(f"it has {count} samples, and weights have {len(weights)}")
    outer = {} if every else outer_of(curve.flat, moved)
    leaves = part.model.leaves
    size = sum(outer[k].entries if k in outer else leaves[k].size for k in moved)
    size *= curve.count if every else 1
    at_once = max(1, min(SAMPLES, ENTRIES // max(size, 1), count))
    random = max(1, PROBES // count)
    exact = every or curve.count <= max(FEW, random)
    directions = curve.count if exact else random
    return Taken(
        curve,
        Samples(count, split, directions, exact, at_once),
        Arrays(leaves, part.batch, consts, weights, part.key),
    )
