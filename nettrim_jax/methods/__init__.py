"""Prunes one layer by a chosen method; only ``refit`` knows the whole network.

- ``base``: the protocol of a method, and the records between it and the engine.
- ``budget``: the budget or share that a method may ask of the whole network.
- ``patterns``: the weights of a layer that may be left, by exact choice.
- ``counts``: the same with their numbers as arrays, once a layer's shape is known.
- ``patterned``: the base of all methods with a pattern.
- ``within``: a pattern that chooses among the weights that a mask allows.
- ``ranking``: a search for the highest of some scores.
- ``nettrim``: ``NetTrim``, the convex program as a method.
- ``layer_program``: the convex programs of one site, from its activations.
- ``rules``: ``Magnitude``, ``Random`` and ``Wanda``, which are closed forms.
- ``sparsegpt``: ``SparseGPT``, a rule that removes weights input by input.
- ``compensation``: inputs one by one, of which later ones make up for what was changed.
- ``layerobs``: ``LayerOBS``, a rule that removes weights one by one.
- ``elimination``: the order in which weights go, each at least loss.
- ``support``: the best weights on a support, for all units of a layer.
- ``trace``: ``trace``, every level of one layer by one run of ``LayerOBS``.
- ``damping``: damped second moments, of which there is an inverse.
- ``taylor``: ``Taylor``, a rule that uses the gradient of a loss.
- ``second_order``: ``OBD``, ``Fisher`` and ``Saliency``, rules that score weights by
  what a loss, or the outputs, lose without them.
- ``obs``: ``OBS``, which removes weights of all layers one by one.
- ``reconstruct``: ``Reconstruct``, which chooses and fits the weights of a pattern.
- ``sparsest``: ``Sparsest``, the better of the two kinds for each layer.
- ``pattern_admm``: the loop of ``Reconstruct``.
- ``exchanges``: exchanges of single weights, by which it ends in small layers.
- ``trials``: how much a layer is kept from overfitting, by comparing errors.
- ``quadratic``: the quadratic loss of ``Reconstruct``.
- ``policy``: what an agent tries, and what it learns from it.
- ``tryandlearn``: ``TryAndLearn``, agents that learn which units can go.
- ``refit``: the best values of the weights that a given mask keeps.
- ``codebook``: ``Codebook``, which gives a layer's weights few values.
- ``centroids``: where such values start, and which is nearest.
- ``codes``: leaves whose weights share few values, as codes.
- ``around``: the layers that make the units of a group, and those that read them.
- ``criteria``: scores of units by the rules of the literature.
- ``joint``: ``Joint``, the units whose part others can take, chosen together.
- ``units``: ``Units``, which removes whole units by a criterion.
"""

from nettrim_jax.methods.criteria import L2, APoZ, MeanActivation, NonZeros
from nettrim_jax.methods.joint import Joint
from nettrim_jax.methods.layerobs import LayerOBS
from nettrim_jax.methods.nettrim import NetTrim
from nettrim_jax.methods.obs import OBS
from nettrim_jax.methods.reconstruct import Reconstruct
from nettrim_jax.methods.rules import Magnitude, Random, Wanda
from nettrim_jax.methods.second_order import OBD, Fisher, Saliency
from nettrim_jax.methods.sparsegpt import SparseGPT
from nettrim_jax.methods.sparsest import Sparsest
from nettrim_jax.methods.taylor import Taylor
from nettrim_jax.methods.tryandlearn import TryAndLearn
from nettrim_jax.methods.units import Units

__all__ = [
    "APoZ",
    "Fisher",
    "Joint",
    "L2",
    "LayerOBS",
    "Magnitude",
    "MeanActivation",
    "NetTrim",
    "NonZeros",
    "OBD",
    "OBS",
    "Random",
    "Reconstruct",
    "Saliency",
    "SparseGPT",
    "Sparsest",
    "Taylor",
    "TryAndLearn",
    "Units",
    "Wanda",
]
