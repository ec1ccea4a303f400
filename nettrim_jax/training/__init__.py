"""Fine-tunes pruned params under their mask; knows no solver.

- ``masking``: ``keep_sparse``, which makes an optimiser leave zeros zero.
"""

from nettrim_jax.training.masking import keep_sparse

__all__ = ["keep_sparse"]
