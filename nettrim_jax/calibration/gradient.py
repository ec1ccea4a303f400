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
        sites = {k: part.network.sites[k] for k in chosen}
        moved = {site.leaf: leaves[site.leaf] for site in sites.values()}
        tree = jax.tree.structure(part.given)
        try:
            if _sharding.meshes_of((part.model.given, part.given)):
                given = part.model.given, jax.tree.leaves(part.given)
                loss, consts = _traced(self.loss, part.model.filler, tree, *given)
                slopes = _slopes_of(loss, consts, moved, list(leaves), part.batch)
            else:
                slopes = _slopes(
                    self.loss, part.model.filler, tree, moved, list(leaves), part.batch
                )
        except Exception as error:
            first = str(error).strip().split("\n")[0].rstrip(".")
            raise MethodError(
                "loss: expected loss(params, batch) to give one floating number that "
                "jax.grad can differentiate by params, with params and batch as "
                f"apply_fn takes them; it failed: {type(error).__name__}: {first}"
            ) from error
        return {
            k: _square(entries.weights_of(site, slopes)) for k, site in sites.items()
        }


@compiled(static_argnames=("loss", "filler", "tree"))
def _slopes(
    loss: Loss,
    filler: Filler,
    tree: Any,
    moved: dict[int, Array],
    leaves: list[Array],
    batch: list[Array],
) -> dict[int, Array]:
    """The gradient of the loss by some of the leaves."""

    def value(moved: dict[int, Array]) -> ArrayLike:
        filled = [moved.get(i, leaf) for i, leaf in enumerate(leaves)]
        return loss(filler(filled), jax.tree.unflatten(tree, batch))

    return jax.grad(value)(moved)


@dataclasses.dataclass(frozen=True, eq=False)
class _Traced:
    """A loss as a program; hashable, so that equal ones are compiled once."""

    flat: jaxprs.Flat

    def __hash__(self) -> int:
        return hash(self.flat.signature)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Traced) and self.flat.signature == other.flat.signature
        )


def _traced(
    loss: Loss, filler: Filler, tree: Any, leaves: list[Array], batch: list[Any]
) -> tuple[_Traced, list[Any]]:
    """The loss, traced with the types of explicit axes, and its constants."""

    def value(leaves: list[Array], batch: list[Any]) -> ArrayLike:
        return loss(filler(leaves), jax.tree.unflatten(tree, batch))

    flat, consts = jaxprs.flatten(untyped.make_jaxpr(value, leaves, batch))
    return _Traced(flat), consts


@compiled(static_argnames="loss")
def _slopes_of(
    loss: _Traced,
    consts: list[Any],
    moved: dict[int, Array],
    leaves: list[Array],
    batch: list[Array],
) -> dict[int, Array]:
    """The gradient of a traced loss by some of the leaves."""

    def value(moved: dict[int, Array]) -> ArrayLike:
        filled = [moved.get(i, leaf) for i, leaf in enumerate(leaves)]
        return jaxprs.evaluate(loss.flat, consts, [*filled, *batch])[0][0]

    return jax.grad(value)(moved)


@compiled()
def _square(slope: Entries) -> Array:
    """The squares of the gradient by weights as their rows meet them."""
    each = entries.read(slope._replace(factor=None))
    each = each.astype(wide(each.dtype))
    return (each if slope.factor is None else divide(each, slope.factor)) ** 2
