"""Prunes while training, and fine-tunes under a mask; knows no solver.

- ``leaves``: the leaves of an optimiser's params, and the matrices of theirs.
- ``masking``: ``keep_sparse``, which makes an optimiser leave zeros zero.
- ``codes``: ``keep_shared``, which makes an optimiser leave shared values shared.
- ``recovery``: what ``recover`` keeps and returns, and the distance that it minimises.
- ``steps``: steps under a mask, measured now and then; the best are kept.
- ``teaching``: a pruned network that is taught by the trained one.
- ``schedule``: what a schedule is, and what all of them have in common.
- ``schedules``: the schedules by which weights go, and come back.
- ``masks``: the masks of all layers, chosen together by their schedules.
- ``state``: the state with the mask, ``mask_of`` and ``check_sparse``.
- ``sparse``: ``train_sparse``, an optimiser under a mask that changes.
- ``cost``: ``connection_cost``, the prox of a penalty after each step.
"""

from nettrim_jax.training.codes import keep_shared
from nettrim_jax.training.cost import connection_cost
from nettrim_jax.training.masking import keep_sparse
from nettrim_jax.training.recovery import Recovered, RecoverReport, RecoverState
from nettrim_jax.training.schedules import (
    DenseSparseDense,
    Gradual,
    Regrow,
    Rounds,
    Threshold,
)
from nettrim_jax.training.sparse import train_sparse
from nettrim_jax.training.state import SparseState, check_sparse, mask_of

__all__ = [
    "DenseSparseDense",
    "Gradual",
    "RecoverReport",
    "RecoverState",
    "Recovered",
    "Regrow",
    "Rounds",
    "SparseState",
    "Threshold",
    "check_sparse",
    "connection_cost",
    "keep_shared",
    "keep_sparse",
    "mask_of",
    "train_sparse",
]
