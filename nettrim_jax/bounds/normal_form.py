"""``link_normalize``: the normal form in which the papers state their theorems.

Every value after a layer is the old one divided by a product of norms, as long as the
operations in between are positively homogeneous; a walk over the program follows that
product.

Knows networks; knows no solver.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import _sharding, _trees
from nettrim_jax._trees import is_array, known
from nettrim_jax.bounds import products
from nettrim_jax.results import LayersError, ParamsError
from nettrim_jax.tracing.jaxprs import Literal, Op, Ref
from nettrim_jax.tracing.sites import Network, require_sites, trace
from nettrim_jax.typing import ApplyFn, Array, Batch, DTypeLike, Params, wide

# f(c x) = c f(x) for every positive c
MOVES = frozenset(
    "reshape transpose squeeze expand_dims rev slice broadcast_in_dim copy copy_p name "
    "convert_element_type reduce_sum reduce_max reduce_min reduce_window_sum "
    "reduce_window_max neg".split()
)

Scale = tuple[int, ...]  # leaves by whose norms a value is divided


class Normalized(NamedTuple):
    """The result of :func:`link_normalize`."""

    params: Params  # same tree, shapes and dtypes
    scale: Array  # [], the factor from the new output to the old one


@_sharding.own()
def link_normalize(params: Params, apply_fn: ApplyFn, batch: Batch) -> Normalized:
    r"""Scales a ReLU network so that the weights of every layer have norm one.

    .. math::
        W_l \mapsto \frac{W_l}{\|W_l\|_1}, \qquad
        b_l \mapsto \frac{b_l}{\prod_{m \le l} \|W_m\|_1}, \qquad
        \|W\|_1 = \sum_{ij} |W_{ij}|

    A ReLU commutes with positive factors, so the output is only divided by the product
    of all norms. In this form, on the rows of the solve and if no operation between the
    layers has a norm above one, the pruned output is off by at most
    :math:`\sum_l \epsilon_l` (parallel) or
    :math:`\epsilon_1 \prod_{l \ge 2} \sqrt{\gamma_l}` (cascade), with absolute
    budgets (Aghasi et al., 2020, theorems 2 and 3).

    Args:
      params: a pytree of arrays, as for :func:`prune`.
      apply_fn: a chain of linear layers with or without biases, each but the last
        followed by a ReLU; pooling, sums, means, reshapes and fixed factors may lie
        between.
      batch: the second argument of ``apply_fn``; only shapes and dtypes matter.

    Returns:
      The new params and the product of the norms.

    Raises:
      LayersError: the network is of another kind; the error names layer and reason.
      ParamsError: the params are not finite, or all weights of a layer are zero.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> params = {"w": jnp.ones((8, 4)), "b": jnp.ones(4), "v": jnp.ones((4, 2))}
      >>> def apply_fn(p, x):
      ...     return jax.nn.relu(x @ p["w"] + p["b"][None, :]) @ p["v"]
      >>> normal, scale = nt.link_normalize(params, apply_fn, jnp.ones((3, 8)))
      >>> float(normal["w"].sum()), float(normal["b"][0]), float(scale)
      (1.0, 0.03125, 256.0)
    """
    endless = _trees.infinite("params", params, ParamsError)
    network = trace(apply_fn, params, batch)
    require_sites(network)
    walk = _Walk(network)
    walk.run()
    for leaf in sorted(walk.layers & endless.keys()):
        raise ParamsError(f"{endless[leaf]} as the weights of a layer")
    everything, tree = jax.tree.flatten(params)
    given = [jnp.asarray(leaf) for leaf in everything if is_array(leaf)]
    leaves = _sharding.plain(given)
    dtype = wide(*(leaf.dtype for leaf in leaves if _is_float(leaf.dtype)))
    norms = {leaf: _size(network, leaf, leaves[leaf], dtype) for leaf in walk.layers}

    def product(scale: Scale) -> Array:
        return math.prod([norms[leaf] for leaf in scale], start=jnp.ones((), dtype))

    def divided(leaf: Array, scale: Scale) -> Array:
        if not scale:
            return leaf
        return (leaf.astype(dtype) / product(scale)).astype(leaf.dtype)

    new = (divided(a, walk.factors.get(i, ())) for i, a in enumerate(leaves))
    new = map(_sharding.like, new, given)
    filled = [next(new) if is_array(leaf) else leaf for leaf in everything]
    scale = _sharding.typed(product(walk.output), _sharding.meshes_of(given))
    return Normalized(jax.tree.unflatten(tree, filled), scale)


def _is_float(dtype: DTypeLike) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _size(network: Network, leaf: int, value: Array, dtype: DTypeLike) -> Array:
    norm = jnp.sum(jnp.abs(value.astype(dtype)))
    if known(norm) and not float(norm) > 0:
        raise ParamsError(
            f"link_normalize: all weights of {network.paths[leaf]} are zero; expected "
            "a layer with a norm. Leave it out of the network"
        )
    return norm


class _Walk:
    """The norms by which each value and each leaf is divided."""

    def __init__(self, network: Network):
        self.network = network
        block = network.flat.block
        self.leaf_of: dict[int, int | None] = dict.fromkeys(network.flat.consts)
        for leaf, slot in enumerate(block.inputs[: len(network.paths)]):
            self.leaf_of[slot] = leaf
        self.scale: dict[int, Scale] = {
            slot: () for slot in block.inputs[len(network.paths) :]
        }
        self.zeros: set[int] = set()
        self.layers = {site.leaf for site in network.sites}
        self.factors: dict[int, Scale] = {}
        self.output: Scale = ()
        self.last = "the input"

    def run(self) -> None:
        """Walks the program; raises LayersError where the product gets lost."""
        network = self.network
        ends = max(use.op.id for site in network.sites for use in site.uses)
        for site in network.sites:
            final = any(use.op.id == ends for use in site.uses)
            if site.response != "relu" and not final:
                self.fail("no ReLU follows it", site.path)
        for op in network.flat.block.ops:
            data = [ref for ref in op.inputs if self.is_data(ref)]
            if data:
                scale = self.answer(op, data)
                self.scale.update(dict.fromkeys(op.outputs, scale))
            else:
                leaf = self.steady(op)
                if op.name in MOVES and op.inputs and self.is_zero(op.inputs[0]):
                    self.zeros.update(op.outputs)
                self.leaf_of.update(dict.fromkeys(op.outputs, leaf))
        scales = {
            self.scale[ref]
            for ref in network.flat.block.outputs
            if isinstance(ref, int) and ref in self.scale and self.is_float(ref)
        }
        if len(scales) != 1:
            self.fail(f"its outputs have {len(scales)} scales, expected one")
        (self.output,) = scales

    def fail(self, why: str, path: str | None = None) -> NoReturn:
        """Raises LayersError at a layer, the last one by default."""
        raise LayersError(
            f"link_normalize: {path or self.last}: {why}; expected a plain ReLU "
            "network, a chain of layers with a ReLU behind each but the last. Bounds "
            "of other networks need no normal form: prune(..., bound=True)"
        )

    def is_data(self, ref: Ref) -> bool:
        return isinstance(ref, int) and ref in self.scale

    def is_float(self, ref: Ref) -> bool:
        return _is_float(self.network.flat.aval(ref).dtype)

    def answer(self, op: Op, data: Sequence[Ref]) -> Scale:
        """The scale of the result of an operation on data."""
        scales = {self.scale[ref] for ref in data if isinstance(ref, int)}
        steady = [ref for ref in op.inputs if not self.is_data(ref)]
        leaves = [self.leaf_of.get(ref) for ref in steady if isinstance(ref, int)]
        if op.name in products.LAYERS and len(data) == 1:
            (leaf,), (scale,) = leaves, scales
            if leaf is None:
                return scale
            if leaf in self.layers:
                self.last = self.network.paths[leaf]
                self.divide(leaf, (leaf,))
                return (*scale, leaf)
        if op.name == "convert_element_type" and not _is_float(op.params["new_dtype"]):
            self.fail("a cast that is not to floating numbers follows it")
        inside = [self.network.paths[leaf] for leaf in leaves if leaf in self.layers]
        if inside:
            self.fail(f"it is an operand of {op.name}, not of a layer", inside[0])
        if scales == {()}:  # before the first layer every operation is allowed
            for leaf in leaves:
                if leaf is not None:
                    self.divide(leaf, ())
            return ()
        if len(scales) > 1:
            self.fail(f"{op.name} joins it to values of another scale")
        (scale,) = scales
        if op.name in MOVES or (op.name == "concatenate" and not steady):
            return scale
        if op.name in ("add", "sub", "add_any"):
            for ref in steady:
                self.shift(ref, scale)
            return scale
        if op.name in ("mul", "div") and len(data) == 1 and op.inputs[0] in data:
            return self.fixed(leaves, scale)
        if op.name == "mul" and len(data) == 1:
            return self.fixed(leaves, scale)
        if op.name in ("max", "min", "pad") and all(map(self.is_zero, steady)):
            return scale
        self.fail(f"{op.name} behind it does not pass positive factors on")

    def fixed(self, leaves: Sequence[int | None], scale: Scale) -> Scale:
        for leaf in leaves:
            if leaf is not None:
                self.divide(leaf, ())
        return scale

    def shift(self, ref: Ref, scale: Scale) -> None:
        """Divides an addend by the norms of the value to which it is added."""
        if self.is_zero(ref):
            return
        leaf = self.leaf_of.get(ref) if isinstance(ref, int) else None
        if leaf is None or leaf < 0:
            self.fail("what is added behind it is no bias from params")
        else:
            self.divide(leaf, scale)

    def divide(self, leaf: int, scale: Scale) -> None:
        if leaf < 0:
            self.fail(
                "what it meets is made of more than one leaf or not linear in it, as a "
                "batch normalisation is; fold that into the weights"
            )
        if self.factors.setdefault(leaf, scale) != scale:
            self.fail(f"{self.network.paths[leaf]} is used at two scales")

    def is_zero(self, ref: Ref) -> bool:
        if isinstance(ref, Literal):
            return bool(np.all(np.asarray(ref.value) == 0))
        return ref in self.zeros

    def steady(self, op: Op) -> int | None:
        """The one leaf in which the result is linear; None without leaves, else -1."""
        leaves = {
            self.leaf_of.get(ref) for ref in op.inputs if isinstance(ref, int)
        } - {None}
        if not leaves:
            return None
        linear = op.name in MOVES and not op.name.endswith(("max", "min"))
        return leaves.pop() if linear and len(leaves) == 1 else -1
