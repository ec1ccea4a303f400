"""The rule of convolutions, in groups of channels or not.

Knows this operation; knows no program.
"""

from typing import Any

from nettrim_jax.structure.contractions import beside, contracted, times
from nettrim_jax.structure.ids import CHANNEL
from nettrim_jax.structure.registry import (
    Cut,
    Follower,
    all_stay,
    axes_of,
    rule,
    with_params,
)
from nettrim_jax.structure.shapes import split
from nettrim_jax.structure.values import Axis, Value


def _grouped(eqn: Any, args: list[Any], cut: Cut) -> list[Any]:
    numbers = eqn.params["dimension_numbers"]
    channels = args[0].shape[numbers.lhs_spec[1]]
    own = args[1].shape[numbers.rhs_spec[1]]
    return with_params(eqn, args, feature_group_count=channels // own)


@rule("conv_general_dilated", _grouped)
def _conv(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Channels of image and kernel go together; a group goes with all of its own."""
    params, (image, kernel) = eqn.params, inputs
    numbers = params["dimension_numbers"]
    (n, c, *places), (o, i, *window) = numbers.lhs_spec, numbers.rhs_spec
    slides = "`conv_general_dilated` slides over it"
    for value, gone in ((image, places), (kernel, window)):
        for axis in gone:
            walk.stay(value.axes[axis], slides)
    if params["batch_group_count"] > 1:
        why = "`conv_general_dilated` groups its batch"
        stays = all_stay(walk, axes_of(inputs), why)
        axes = (stays,) * len(image.axes)
        return [Value(axes, times(image.whole, kernel.whole))]
    made = beside(kernel.axes[o], image)
    for axis in (image.axes[c], made):
        if axis.ids is not None:
            walk.ids.mark(axis.ids, CHANNEL)
    groups = params["feature_group_count"]
    own, pairs = [image, kernel], [[c], [i]]
    if groups > 1:
        each = eqn.invars[1].aval.shape
        first, inner = split(walk, image.axes[c], [groups, each[i]])
        second, _ = split(walk, kernel.axes[o], [groups, each[o] // groups])
        walk.unite([first, second])
        axes = list(image.axes)
        axes[c] = inner
        own[0] = Value(tuple(axes), image.whole, source=image.source)
    record = contracted(walk, eqn, own, pairs, [made])
    padding = [*params["padding"], *((d - 1, 0) for d in params["lhs_dilation"])]
    record = record._replace(padded=any(any(pair) for pair in padding))
    if groups > 1:  # constants of several groups are not told apart
        record = record._replace(axis=-1, missed=None, constant=None)
        ids = (image.axes[c].ids,) if image.axes[c].ids is not None else ()
        record = record._replace(inputs=ids)
    axes = [Axis(None, slides)] * len(image.axes)
    axes[numbers.out_spec[0]] = beside(image.axes[n], kernel)
    axes[numbers.out_spec[1]] = made
    value = Value(tuple(axes), times(image.whole, kernel.whole))
    return [walk.product(eqn, value, record)]
