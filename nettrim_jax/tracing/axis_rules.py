"""What each operation does with the labels of its operands' axes.

Knows operations; knows no program.
"""

from collections.abc import Callable, Sequence
from typing import Any

from nettrim_jax.tracing.dataflow import ELEMENTWISE
from nettrim_jax.tracing.index_maps import SAME, groups
from nettrim_jax.tracing.jaxprs import Op
from nettrim_jax.tracing.labels import (
    Factor,
    Label,
    Labels,
    cut,
    free,
    in_order,
    joined,
    lost,
    marked,
    marks_of,
    plain,
    whole,
    without_marks,
)

POINTWISE = (
    ELEMENTWISE
    | SAME
    | frozenset(
        "tan asin acos atan sinh cosh asinh acosh atanh atan2 erfc erf_inv lgamma "
        "digamma round floor ceil rem is_finite cbrt nextafter xor shift_left "
        "shift_right_logical shift_right_arithmetic clz population_count real imag "
        "conj complex square cumsum cumprod cummax cummin cumlogsumexp".split()
    )
)
REDUCTIONS = frozenset(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor "
    "argmax argmin".split()
)
FRESH = frozenset("iota random_bits rng_uniform rng_bit_generator".split())

Shapes = list[tuple[int, ...]]
Rule = Callable[[Op, list[Labels], Shapes, Shapes], list[Labels]]
RULES: dict[str, Rule] = {}


def results(
    op: Op, inputs: list[Labels], before: Shapes, shapes: Shapes
) -> list[Labels]:
    """The labels of an operation's results.

    Args:
      op: the operation, without blocks.
      inputs: the labels of its operands.
      before: the shapes of its operands.
      shapes: the shapes of its results.
    """
    if op.name == "optimization_barrier":
        return inputs
    unbound = all(free(label) for labels in inputs for label in labels)
    if op.name in FRESH or unbound:
        return [plain(shape) for shape in shapes]
    rule = RULES.get(op.name)
    if rule is not None:
        return rule(op, inputs, before, shapes)
    if op.name in POINTWISE:
        return [_pointwise(op, inputs, shape) for shape in shapes]
    why = f"`{op.name}` moves its positions in a way that is not known"
    return [tuple(whole(why, size) for size in shape) for shape in shapes]


def _pointwise(op: Op, inputs: Sequence[Labels], shape: tuple[int, ...]) -> Labels:
    full = [labels for labels in inputs if len(labels) == len(shape)]
    why = f"`{op.name}` combines different axes"
    return tuple(joined(axis, why) for axis in zip(*full, strict=True))


def _rule(names: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names.split(), rule))
        return rule

    return add


@_rule("transpose")
def _transpose(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    return [tuple(inputs[0][p] for p in op.params["permutation"])]


@_rule("squeeze")
def _squeeze(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    gone = {d % len(inputs[0]) for d in op.params["dimensions"]}
    marks = [mark for axis in gone for mark in marks_of(inputs[0][axis])]
    rest = [label for i, label in enumerate(inputs[0]) if i not in gone]
    return [marked(rest, marks)]


@_rule("broadcast_in_dim")
def _broadcast(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    out = list(plain(shapes[0]))
    marks = []
    for axis, at in enumerate(op.params["broadcast_dimensions"]):
        marks += marks_of(inputs[0][axis])
        if parts := without_marks(inputs[0][axis]):  # else it is of size one
            out[at] = parts
    return [marked(out, marks)]


@_rule("reshape")
def _reshape(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    why = "a `reshape` splits its positions"
    if op.params.get("dimensions") is not None or 0 in before[0]:
        return [tuple(whole(why, size) for size in shapes[0])]
    out: list[Label] = [()] * len(shapes[0])
    for left, right in groups(before[0], shapes[0]):
        factors = [f for axis in left for f in without_marks(inputs[0][axis])]
        sizes = [shapes[0][at] for at in right]
        found = _split_up(factors, sizes)
        if found is None:
            name = lost(tuple(factors), why)[0].axis
            found = [whole(name, size) for size in sizes]
        for at, label in zip(right, found, strict=True):
            out[at] = label
    return [marked(out, [mark for label in inputs[0] for mark in marks_of(label)])]


def _split_up(factors: list[Factor], sizes: list[int]) -> list[Label] | None:
    """The factors that make up axes of these sizes; None if one is split."""
    rest, out = list(factors), []
    for size in reversed(sizes):  # the last axis has the fastest factors
        label: Label = ()
        while size > 1:
            last = rest.pop()
            if last.axis == -1 and last.size > size and last.size % size == 0:
                rest.append(Factor(-1, last.size // size))
                last = Factor(-1, size)
            if size % last.size:
                return None
            label, size = (last, *label), size // last.size
        out.append(label)
    return out[::-1]


@_rule("rev")
def _rev(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    out = list(inputs[0])
    for axis in op.params["dimensions"]:
        size = shapes[0][axis]
        out[axis] = cut(out[axis], size - 1, -1, size, "`rev` turns merged axes")
    return [tuple(out)]


@_rule("slice")
def _slice(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    strides = op.params["strides"] or (1,) * len(shapes[0])
    cuts = zip(inputs[0], op.params["start_indices"], strides, shapes[0], strict=True)
    return [tuple(cut(*each, "a `slice` cuts merged axes") for each in cuts)]


@_rule("split")
def _split(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    axis, start, out = op.params["axis"], 0, []
    for shape in shapes:
        labels = list(inputs[0])
        labels[axis] = cut(labels[axis], start, 1, shape[axis], "a `split` cuts it")
        out.append(tuple(labels))
        start += shape[axis]
    return out


@_rule("pad")
def _pad(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    out = []
    for label, (low, _, inner), size in zip(
        inputs[0], op.params["padding_config"], shapes[0], strict=True
    ):
        why = "a `pad` puts others between its positions"
        if inner:
            out.append(lost(label, why, size))
        else:
            out.append(cut(label, -low, 1, size, why))
    return [tuple(out)]


@_rule("concatenate")
def _concatenate(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    axis, start, why = op.params["dimension"], 0, "a `concatenate` joins positions"
    if all(own[axis] == 1 for own in before) and (label := in_order(inputs, why)):
        out = [joined(labels, why) for labels in zip(*inputs, strict=True)]
        out = [without_marks(one) for one in out]
        return [(*out[:axis], label, *out[axis + 1 :])]
    found = []
    for labels, own in zip(inputs, before, strict=True):
        if not free(labels[axis]):
            found.append(cut(labels[axis], -start, 1, shapes[0][axis], why))
        start += own[axis]
    out = [joined(labels, why) for labels in zip(*inputs, strict=True)]
    size = shapes[0][axis]
    out[axis] = whole(-1, size) if not found else found[0]
    if len(found) > 1:
        out[axis] = lost(found[0], why, size)
    return [tuple(out)]


@_rule(" ".join(REDUCTIONS))
def _reduce(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    gone = set(op.params["axes"])
    return [tuple(label for i, label in enumerate(inputs[0]) if i not in gone)]


@_rule("sort top_k approx_top_k reduce_window reduce_window_max reduce_window_sum")
def _same_size(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    full = before[0]
    moved = op.params.get("dimension")  # of a sort
    windows = op.params.get("window_dimensions", (1,) * len(full))
    why, out = f"`{op.name}` moves its positions", []
    for axis, (label, size) in enumerate(zip(inputs[0], shapes[0], strict=True)):
        still = size == full[axis] and axis != moved and windows[axis] == 1
        if op.name.endswith("top_k"):
            still = still and axis < len(full) - 1
        out.append(label if still else lost(label, why, size))
    return [tuple(out) for _ in shapes]


@_rule("dot_general")
def _dot(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    contract, batch = op.params["dimension_numbers"]
    why = "a `dot_general` combines different axes"
    pairs = zip(*batch, strict=True)
    out = [joined((inputs[0][a], inputs[1][b]), why) for a, b in pairs]
    for labels, gone, shared in zip(inputs, contract, batch, strict=True):
        rest = [a for a in range(len(labels)) if a not in (*gone, *shared)]
        out += [labels[a] for a in rest]
    return [tuple(out)]


@_rule("conv_general_dilated")
def _conv(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    params = op.params
    numbers = params["dimension_numbers"]
    images, made = numbers.lhs_spec, numbers.out_spec
    out = list(plain(shapes[0]))
    why = "a convolution has other positions than its image"
    for at, (a, b) in enumerate(zip(images, made, strict=True)):
        label, size = inputs[0][a], shapes[0][b]
        if at == 1:  # channels
            continue
        if at == 0:
            still = params["batch_group_count"] == 1
        else:
            step = params["window_strides"][at - 2], params["lhs_dilation"][at - 2]
            still = step == (1, 1) and size == before[0][a]
        out[b] = label if still else lost(label, why, size)
    return [tuple(out)]


@_rule("ragged_dot_general")
def _ragged(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    # its rows are sorted by group, which is refused where they are weighed
    why = "`ragged_dot` sorts its rows by group"
    return [tuple(whole(why, size) for size in shapes[0])]


@_rule("gather")
def _gather(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    numbers, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
    values, indices = inputs[0], list(inputs[1][:-1])
    full = before[0]
    paired = tuple(getattr(numbers, "operand_batching_dims", ()))
    partners = tuple(getattr(numbers, "start_indices_batching_dims", ()))
    why = "a `gather` looks up its positions"
    for a, b in zip(paired, partners, strict=True):
        indices[b] = joined((values[a], indices[b]), why)
    gone = {*numbers.collapsed_slice_dims, *paired}
    looked = [a for a in gone - {*paired} if full[a] != sizes[a] or full[a] > 1]
    if any(not free(values[a]) for a in looked):
        indices = [
            whole(why, size) if free(label) else label
            for label, size in zip(indices, before[1], strict=False)
        ]
    kept = [a for a in range(len(values)) if a not in gone]
    out, rest = [], iter(indices)
    offsets = dict(zip(sorted(numbers.offset_dims), kept, strict=True))
    for axis, size in enumerate(shapes[0]):
        if axis not in offsets:
            out.append(next(rest))
            continue
        label = values[offsets[axis]]
        all_of_it = sizes[offsets[axis]] == full[offsets[axis]]
        out.append(label if all_of_it else lost(label, why, size))
    some = {f.axis for a in looked for f in without_marks(values[a]) if f.axis != -1}
    return [marked(out, [Factor(axis, 1, 0, 0) for axis in some])]


@_rule(
    "scatter scatter-add scatter-mul scatter-max scatter-min scatter_add scatter_mul"
)
def _scatter(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    if not all(map(free, inputs[0])):
        return [inputs[0]]
    why = "a `scatter` sends its positions elsewhere"
    return [tuple(whole(why, size) for size in shapes[0])]


@_rule("dynamic_slice")
def _dynamic_slice(op: Op, inputs: Any, before: Shapes, shapes: Shapes) -> list[Labels]:
    why = "a `dynamic_slice` cuts it"
    cuts = zip(inputs[0], before[0], shapes[0], strict=True)
    out, marks = [], []
    for a, n, m in cuts:
        out.append(a if n == m else lost(a, why, m))
        if m == 1 < n:  # which position it is is not known
            marks += [Factor(f.axis, 1, 0, 0) for f in without_marks(a) if f.axis != -1]
    return [marked(out, marks)]


@_rule("dynamic_update_slice")
def _dynamic_update(
    op: Op, inputs: Any, before: Shapes, shapes: Shapes
) -> list[Labels]:
    why, out = "a `dynamic_update_slice` moves it", []
    for a, b, n, m in zip(inputs[0], inputs[1], shapes[0], before[1], strict=True):
        both = (a, b) if n == m else (a,)
        moved = not free(b) and n != m
        out.append(lost(b, why, n) if moved else joined(both, why))
    return [tuple(out)]
