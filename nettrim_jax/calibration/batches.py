"""The batches to send through the network: one, or all that a loader gives.

A batch is traced once per shape, and must lead to the same layers as the first one.
Knows the network; knows no solver.
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import _sharding
from nettrim_jax._compile import compiled
from nettrim_jax._trees import infinite, is_array, known, require_alive
from nettrim_jax.calibration.model import Model
from nettrim_jax.calibration.padding import RowWeights, all_axes, row_weights
from nettrim_jax.results import BatchError, warn
from nettrim_jax.tracing import jaxprs
from nettrim_jax.tracing.sites import Network, trace
from nettrim_jax.typing import Array, Batch, Weights

MANY = 5  # shapes of a loader's batches, of which a warning tells


class Each(tuple):
    """The weights of each batch of a list, of which some may be zero as a whole."""


Weighing = Weights | Each


class Part(NamedTuple):
    """One batch with its traced network."""

    network: Network
    batch: list[Array]
    key: Array
    weights: RowWeights | None
    given: Batch  # as the user gave it
    model: Model
    infinite: tuple[str, ...] = ()  # what is to say of arrays with infinities

    def outputs(self, leaves: Sequence[Array]) -> list[Array]:
        """The outputs of the network with these leaves, always by the same program.

        Entries of weight zero are zero.
        """
        network = self.network
        return self.counted(_run(network, network.consts, leaves, self.batch))

    def counted(self, outputs: list[Array]) -> list[Array]:
        """The outputs of the network, with zeros where no weight is above zero."""
        return outputs if self.weights is None else _counted(self.weights, outputs)


@compiled(static_argnames="network")
def _run(
    network: Network,
    consts: Sequence[Array],
    leaves: Sequence[Array],
    batch: Sequence[Array],
) -> list[Array]:
    return jaxprs.evaluate(network.flat, consts, [*leaves, *batch])[0]


@compiled()
def _counted(weights: RowWeights, outputs: Sequence[Array]) -> list[Array]:
    return weights.counted(outputs)


def is_loader(batch: Batch) -> bool:
    """Whether this is an iterator or a loader of batches rather than a batch."""
    if is_array(batch) or isinstance(batch, str | bytes):
        return False
    if not hasattr(batch, "__iter__"):
        return False
    if hasattr(batch, "__next__"):
        return True
    with warnings.catch_warnings():  # JAX warns about iterables that are no pytrees
        warnings.simplefilter("ignore", DeprecationWarning)
        return jax.tree.structure(batch) == jax.tree.structure(0)


def stream(batch: Batch, limit: int | None, tell: Callable[[int], None]) -> Batch:
    """A batch as it is; of a loader, at most so many batches, counted as they come.

    Args:
      batch: a batch or a loader.
      limit: the largest number of batches to take from a loader; None for all.
      tell: is called with the number of batches read so far.
    """
    return Stream(batch, limit, tell) if is_loader(batch) else batch


class Stream:
    """The batches of a user's loader, see :func:`stream`.

    It takes none beyond the limit, so what is left of an iterator is the user's.
    """

    def __init__(self, loader: Any, limit: int | None, tell: Callable[[int], None]):
        self.loader, self.limit, self.tell = loader, limit, tell

    def __iter__(self) -> Iterator[Batch]:
        shapes = set()
        for count, one in enumerate(itertools.islice(self.loader, self.limit), 1):
            self.tell(count)
            before = len(shapes)
            shapes.add(tuple(np.shape(leaf) for leaf in jax.tree.leaves(one)))
            if before < len(shapes) == MANY:
                warn(
                    f"batch: {MANY} shapes among the first {count} batches of the "
                    "loader, and the network is compiled anew for each. Pad batches to "
                    "one shape, or to a few, and give weights=, with 0 for padding"
                )
            yield one


class Stored:
    """The batches of a loader, which can be read more than once."""

    def __init__(self, batch: Batch):
        self._given = list(batches(batch))

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._given)


def batches(batch: Batch) -> Iterator[Batch]:
    """Yields the batch or a loader's batches, but for those without a sample.

    Raises:
      BatchError: there is no other batch.
    """
    if not is_loader(batch):
        yield batch
        return
    given = some = 0
    for one in _read(batch):
        given += 1
        one = jax.tree.map(_array, one)
        if not _empty(one):
            some += 1
            yield one
    if not some:
        raise BatchError(
            f"batch: none of the loader's {given} batches has a sample"
            if given
            else "batch: the loader gave no batch; an iterator can be read only once, "
            "so make a new one, or give a loader that starts anew"
        )


def _read(loader: Any) -> Iterator[Batch]:
    """The batches of a loader, which makes them within the user's mesh."""
    batches = iter(loader)
    while True:
        with _sharding.users():
            try:
                one = next(batches)
            except StopIteration:
                return
        yield one


def _empty(batch: Batch) -> bool:
    """Whether no array of a batch has an entry, as where a filter left no sample."""
    arrays = [leaf for leaf in jax.tree.leaves(batch) if np.ndim(leaf)]
    return bool(arrays) and not any(np.size(leaf) for leaf in arrays)


def _array(leaf: Any) -> Any:
    # converts other libraries' tensors, too; plain numbers keep their weak types
    return leaf if isinstance(leaf, jax.Array | int | float) else np.asarray(leaf)


class Source(NamedTuple):
    """A network and the data to send through it."""

    model: Model
    batch: Batch  # one batch, or an iterable of batches
    key: Array
    weights: Weighing | None  # of the rows, as for :func:`nettrim_jax.prune`

    def of(self, batch: Batch, weights: Weighing | None = None) -> "Source":
        """The same network with other data."""
        return self._replace(batch=batch, weights=weights)

    def stored(self) -> "Source":
        """The same source, with batches that can be read more than once."""
        loader = is_loader(self.batch)
        return self._replace(batch=Stored(self.batch) if loader else self.batch)


def parts(source: Source) -> Iterator[Part]:
    """Yields every batch as it comes, with its network and its own key.

    Yields:
      The parts, at least one.

    Raises:
      BatchError: there is no batch, one has a NaN, or one does not fit the first.
    """
    model, batch, key, weights = source
    loaded = is_loader(batch)
    networks: dict[Any, Network] = {}
    axes = functools.cache(all_axes)  # one walk per network, not per batch
    first = None
    for at, one in enumerate(batches(batch)):
        name = f"batch {at}" if loaded else "batch"
        require_alive(name, one, BatchError)
        _sharding.require_free(name, one, BatchError)
        found = infinite(name, one, BatchError)
        leaves, tree = jax.tree.flatten(one)
        arrays = [k for k, leaf in enumerate(leaves) if is_array(leaf)]
        bad = tuple(arrays[k] for k in found)
        kinds = [(np.shape(a), str(getattr(a, "dtype", ""))) for a in leaves]
        kind = (tree, *kinds, bad)
        if kind not in networks:
            if first is not None and kind[0] != first[0]:
                raise BatchError(
                    f"{name}: its structure is {tree}, that of the first was "
                    f"{first[0]}; every batch must be what apply_fn takes"
                )
            endless = [*model.infinite, *(len(model.leaves) + k for k in bad)]
            network = trace(model.apply_fn, model.params, one, endless)
            networks[kind] = network
            first = kind if first is None else first
            if _layers(network) != _layers(networks[first]):
                raise BatchError(
                    f"{name}: with it the network has other layers than with the "
                    "first; give batches that differ in the number of samples only"
                )
        with _sharding.users():
            given = weights(one) if callable(weights) else weights
        pieces = isinstance(given, Each)
        own = weights_of(given[at] if pieces else given, some=not pieces)
        yield Part(
            networks[kind],
            _sharding.plain([jnp.asarray(leaf) for leaf in leaves]),
            jax.random.fold_in(key, at) if at else key,
            row_weights(networks[kind], own, axes),
            one,
            model,
            tuple(found.values()),
        )


def weights_of(weights: Any, some: bool = True) -> Array | None:
    """The weights as an array; raises BatchError if they cannot weigh rows.

    Args:
      weights: as given.
      some: whether one has to be above zero.
    """
    if weights is None:
        return None
    require_alive("weights", weights, BatchError)
    try:
        array = jnp.asarray(_sharding.plain(weights), jnp.float32)
    except (TypeError, ValueError):
        raise BatchError(
            f"weights: expected an array of numbers, got {type(weights).__name__}; "
            "give one number per sample, 0 for padding"
        ) from None
    if known(array):
        with jax.ensure_compile_time_eval():
            values = np.asarray(array)
        wrong = int(np.sum(~(np.isfinite(values) & (values >= 0))))
        if wrong:
            raise BatchError(
                f"weights: {wrong} of {array.size} are negative, NaN or infinite; "
                "expected 0 for padding and a positive number elsewhere"
            )
        if some and not np.any(values > 0):
            raise BatchError(
                "weights: leave no row, all are zero; expected a positive number for "
                "each row that counts"
            )
    return array


def _layers(network: Network) -> list[tuple]:
    return [
        (site.leaf, site.index.shape, site.kind, site.response, len(site.uses))
        for site in network.sites
    ]
