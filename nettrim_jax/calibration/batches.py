"""What is sent through the network: one batch, or all that a loader gives.

Every batch is traced, once per shape, and must show the same layers as the first.
Knows the network; knows no solver.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import _checks
from nettrim_jax.calibration.sensitivity import sensitivities
from nettrim_jax.results import BatchError
from nettrim_jax.tracing import jaxprs
from nettrim_jax.tracing.sites import Graph, is_array, trace
from nettrim_jax.typing import ApplyFn, Array, ArrayLike, Batch, Params

# one array for every batch, or a function of the batch
Weights = ArrayLike | Callable[[Batch], ArrayLike]


class Part(NamedTuple):
    """One batch with its traced network."""

    graph: Graph
    batch: list[Array]
    key: Array
    weights: Array | None

    def outputs(self, leaves: Sequence[Array]) -> list[Array]:
        """What the network returns with these leaves, always by one program."""
        return _run(self.graph, self.graph.consts, leaves, self.batch)

    def sensitivities(
        self, chosen: tuple[int, ...], leaves: Sequence[Array]
    ) -> dict[int, Array]:
        """How far errors of these sites' answers move the output."""
        if not chosen:
            return {}
        graph, batch, key, weights = self
        return sensitivities(graph, chosen, graph.consts, leaves, batch, key, weights)


@functools.partial(jax.jit, static_argnames="graph")
def _run(
    graph: Graph,
    consts: Sequence[Array],
    leaves: Sequence[Array],
    batch: Sequence[Array],
) -> list[Array]:
    return jaxprs.evaluate(graph.flat, consts, [*leaves, *batch])[0]


def is_loader(batch: Batch) -> bool:
    """Whether this is an iterator or a loader of batches rather than a batch."""
    if is_array(batch) or isinstance(batch, str | bytes):
        return False
    if not hasattr(batch, "__iter__"):
        return False
    if hasattr(batch, "__next__"):
        return True
    with warnings.catch_warnings():  # JAX warns of iterables that are no pytrees
        warnings.simplefilter("ignore", DeprecationWarning)
        return jax.tree.structure(batch) == jax.tree.structure(0)


class Stored:
    """What a loader gave, to be read more than once."""

    def __init__(self, batch: Batch):
        self._given = list(batches(batch))

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._given)


def batches(batch: Batch) -> Iterator[Batch]:
    """The batch itself, or what a loader gives; BatchError if that is nothing."""
    if not is_loader(batch):
        yield batch
        return
    nothing = True
    for one in batch:
        nothing = False
        yield jax.tree.map(_array, one)
    if nothing:
        raise BatchError(
            "batch: the loader gave no batch; an iterator can be read only once, so "
            "make a new one, or give a loader that starts anew"
        )


def _array(leaf: Any) -> Any:
    # other libraries' tensors, too; plain numbers stay as weak as they are
    return leaf if isinstance(leaf, jax.Array | int | float) else np.asarray(leaf)


def parts(
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    key: Array,
    weights: Weights | None,
) -> Iterator[Part]:
    """Every batch, as it comes, with its graph and a key of its own.

    Args:
      apply_fn: the network.
      params: its parameters.
      batch: one batch, or anything that can be iterated over for batches.
      key: a PRNG key.
      weights: of the rows, as for :func:`nettrim_jax.prune`.

    Yields:
      The parts, at least one.

    Raises:
      BatchError: there is no batch, one is not finite, or one does not fit the first.
    """
    loaded = is_loader(batch)
    graphs: dict[Any, Graph] = {}
    first = None
    for at, one in enumerate(batches(batch)):
        name = f"batch {at}" if loaded else "batch"
        _checks.finite(name, one, BatchError)
        leaves, tree = jax.tree.flatten(one)
        kind = (tree, *((np.shape(a), str(getattr(a, "dtype", ""))) for a in leaves))
        if kind not in graphs:
            if first is not None and kind[0] != first[0]:
                raise BatchError(
                    f"{name}: its structure is {tree}, that of the first was "
                    f"{first[0]}; every batch must be what apply_fn takes"
                )
            graph = graphs[kind] = trace(apply_fn, params, one)
            first = kind if first is None else first
            if _layers(graph) != _layers(graphs[first]):
                raise BatchError(
                    f"{name}: with it the network has other layers than with the "
                    "first; give batches that differ in the number of samples only"
                )
        given = weights(one) if callable(weights) else weights
        yield Part(
            graphs[kind],
            [jnp.asarray(leaf) for leaf in leaves],
            jax.random.fold_in(key, at) if at else key,
            _checks.row_weights(given),
        )


def _layers(graph: Graph) -> list[tuple]:
    return [
        (site.leaf, site.index.shape, site.kind, site.response, len(site.uses))
        for site in graph.sites
    ]
