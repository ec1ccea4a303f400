"""The derivatives of the user's loss by each weight of the trained network.

Knows the network's parts; knows no solver and no method.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax

from nettrim_jax import _sharding
from nettrim_jax._compile import compiled
from nettrim_jax._numerics import divide
from nettrim_jax._trees import Filler
from nettrim_jax.calibration.batches import Part
from nettrim_jax.results import MethodError
from nettrim_jax.tracing import entries, jaxprs, untyped
from nettrim_jax.tracing.entries import Entries
from nettrim_jax.typing import Array, ArrayLike, Batch, Params, wide

Loss = Callable[[Params, Batch], ArrayLike]


@dataclasses.dataclass(frozen=True)
class LossGradient:
    r"""Squared derivatives of the loss by a layer's weights, ``[b, d_in, d_out]``.

    .. math::
        \sum_{\text{batches}} \Big(\frac{\partial L}{\partial W_{ij}}\Big)^2

    Attributes:
      loss: ``loss(params, batch)``, one number.
    """

    loss: Loss

    name: ClassVar[str] = "loss gradient"

    def of(
        self, part: Part, chosen: tuple[int, ...], leaves: Sequence[Array]
    ) -> Mapping[int, Array]:
        """The squares on one batch, by one backward pass through network and loss."""
        found = _by_site(self.loss, part, chosen, leaves)
        return {k: _square(slope) for k, slope in found.items()}


@dataclasses.dataclass(frozen=True)
class LossSlope:
    r"""Derivatives of the loss by a layer's weights, ``[b, d_in, d_out]``.

    .. math::
        \sum_{\text{batches}} \frac{\partial L}{\partial W_{ij}}

    Attributes:
      loss: ``loss(params, batch)``, one number.
    """

    loss: Loss

    name: ClassVar[str] = "loss slope"

    def of(
        self, part: Part, chosen: tuple[int, ...], leaves: Sequence[Array]
    ) -> Mapping[int, Array]:
        """The derivatives on one batch, by one backward pass."""
        found = _by_site(self.loss, part, chosen, leaves)
        return {k: _slope(slope) for k, slope in found.items()}


def _by_site(
    given: Loss, part: Part, chosen: tuple[int, ...], leaves: Sequence[Array]
) -> dict[int, Entries]:
    """The gradient of the loss on one batch by each site's weights.

    Raises:
      MethodError: the loss is no number that JAX can differentiate.
    """
    sites = {k: part.network.sites[k] for k in chosen}
    moved = {site.leaf: leaves[site.leaf] for site in sites.values()}
    tree = jax.tree.structure(part.given)
    try:
        loss, consts = Called(given, part.model.filler, tree), []
        if _sharding.meshes_of((part.model.given, part.given)):
            arrays = part.model.given, jax.tree.leaves(part.given)
            flat, consts = jaxprs.flatten(untyped.make_jaxpr(loss, *arrays))
            loss = _Traced(flat)
        slopes = _slopes(loss, moved, list(leaves), part.batch, consts)
    except Exception as error:
        first = str(error).strip().split("\n")[0].rstrip(".")
        raise MethodError(
            "loss: expected loss(params, batch) to give one floating number that "
            "jax.grad can differentiate by params, with params and batch as "
            f"apply_fn takes them; it failed: {type(error).__name__}: {first}"
        ) from error
    return {k: entries.weights_of(site, slopes) for k, site in sites.items()}


@dataclasses.dataclass(frozen=True)
class Called:
    """A loss as a function of arrays; equal ones are compiled once."""

    loss: Loss
    filler: Filler
    tree: Any

    def __call__(self, leaves: list[Array], batch: list[Any], *_: Any) -> ArrayLike:
        """The loss, of the leaves of params and of a batch."""
        return self.loss(self.filler(leaves), jax.tree.unflatten(self.tree, batch))


@dataclasses.dataclass(frozen=True)
class _Traced:
    """The same as a program that knows no types of explicit axes."""

    flat: jaxprs.Flat

    def __call__(
        self, leaves: list[Array], batch: list[Any], consts: list[Any]
    ) -> ArrayLike:
        return jaxprs.evaluate(self.flat, consts, [*leaves, *batch])[0][0]


@compiled(static_argnames="loss")
def _slopes(
    loss: Called | _Traced,
    moved: dict[int, Array],
    leaves: list[Array],
    batch: list[Array],
    consts: list[Any],
) -> dict[int, Array]:
    """The gradient of the loss by some of the leaves."""

    def value(moved: dict[int, Array]) -> ArrayLike:
        filled = [moved.get(i, leaf) for i, leaf in enumerate(leaves)]
        return loss(filled, batch, consts)

    return jax.grad(value)(moved)


@compiled()
def _square(slope: Entries) -> Array:
    """The squares of the gradient by weights as their rows meet them."""
    return _met(slope) ** 2


@compiled()
def _slope(slope: Entries) -> Array:
    """The gradient by weights as their rows meet them."""
    return _met(slope)


def _met(slope: Entries) -> Array:
    each = entries.read(slope._replace(factor=None))
    each = each.astype(wide(each.dtype))
    return each if slope.factor is None else divide(each, slope.factor)
