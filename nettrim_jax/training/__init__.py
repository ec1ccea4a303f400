"""Fine-tunes pruned params under their mask; knows no solver.

- ``masking``: ``keep_sparse``, which makes an optimiser leave zeros zero.
- ``recovery``: what ``recover`` keeps and returns, and the distance that it minimises.
- ``steps``: steps under a mask, measured now and then; the best are kept.
- ``teaching``: a pruned network that is taught by the trained one.
"""

from nettrim_jax.training.masking import keep_sparse
from nettrim_jax.training.recovery import Recovered, RecoverReport, RecoverState

__all__ = ["RecoverReport", "RecoverState", "Recovered", "keep_sparse"]
