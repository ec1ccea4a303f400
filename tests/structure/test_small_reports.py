"""The report of a smaller network: its sizes, and XLA's own count of its work."""

import jax
import models
import numpy as np
import pytest
import structures
from models import data, normal, relaxed

import nettrim_jax as nt
from nettrim_jax.structure.counting import work


def wide(name):
    """A network in which products are nearly all of the work."""
    if name == "dense":

        def apply_fn(p, x):
            return jax.nn.relu(x @ p["a"]) @ p["b"]

        return {"a": normal(300, 400), "b": normal(400, 100)}, apply_fn, data(16, 300)
    if name == "conv":

        def apply_fn(p, x):
            x = jax.nn.relu(models.convolve(x, p["a"], window_strides=(2, 1)))
            return models.convolve(x, p["b"], padding=((2, 1), (0, 3)))

        params = {"a": normal(3, 5, 32, 48), "b": normal(3, 3, 48, 64)}
        return params, apply_fn, data(2, 7, 6, 32)
    if name == "grouped":

        def apply_fn(p, x):
            x = models.convolve(x, p["a"])
            x = models.convolve(x, p["b"], feature_group_count=2, rhs_dilation=(2, 1))
            return models.convolve(x, p["c"])

        params = {"a": normal(1, 1, 64, 64), "b": normal(3, 3, 32, 64)}
        return params | {"c": normal(1, 1, 64, 64)}, apply_fn, data(2, 6, 6, 64)
    if name == "transposed":

        def apply_fn(p, x):
            y = models.convolve(x, p["a"])
            return jax.lax.conv_transpose(y, p["b"], (2, 2), "SAME")

        params = {"a": normal(3, 3, 64, 64), "b": normal(4, 4, 64, 64)}
        return params, apply_fn, data(2, 4, 4, 64)

    def apply_fn(p, x):
        q, k, v = (x @ p[n] for n in "qkv")
        y = structures.attend(*(a.reshape(2, 32, 4, 64) for a in (q, k, v)))
        return y.reshape(2, 32, 256) @ p["o"]

    params = {n: normal(256, 256, seed=k) for k, n in enumerate("qkvo")}
    return params, apply_fn, data(2, 32, 256)


def flops(function, *args):
    """XLA's own count, of the program as it is given to it."""
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


@pytest.mark.parametrize(
    "name", ["dense", "conv", "grouped", "transposed", "attention"]
)
def test_multiply_adds_are_those_of_xla(name):
    params, apply_fn, x = wide(name)
    apply_fn = relaxed(apply_fn)
    found = nt.units(params, apply_fn, x)
    remove = {g.name: range(g.count // 2) for g in found.groups if g.kind != "group"}
    small = nt.shrink(params, apply_fn, x, remove)
    counted = small.report.multiply_adds
    full = flops(apply_fn, params, x) / 2
    less = flops(small.apply_fn, small.params, x) / 2
    assert abs(counted.before / full - 1) < 0.02
    assert abs(counted.after / less - 1) < 0.02
    assert counted.after < 0.7 * counted.before


def test_a_report_counts_and_prints():
    net = structures.get("mlp")
    small = nt.shrink(net.params, net.apply_fn, net.batch, {"a": range(5)})
    report = small.report
    assert report.parameters == (6 * 10 + 10 + 80 + 8 + 24, 6 * 5 + 5 + 40 + 8 + 24)
    assert report.bytes == tuple(4 * n for n in report.parameters)
    assert report.multiply_adds == (6 * (60 + 80 + 24), 6 * (30 + 40 + 24))
    assert report.activations == (6 * 21, 6 * 16)
    first = report.groups[0]
    assert (first.units, first.parameters, first.bytes) == (
        (10, 5),
        (150, 75),
        (600, 300),
    )
    assert first.multiply_adds == (6 * (60 + 80), 6 * (30 + 40))
    assert first.activations == (60, 30)
    assert report.changed[0] == ("a", (6, 10), (6, 5))
    assert report.as_it_is
    text = str(report).splitlines()
    assert text[1].split() == ["a", "neuron", "10", "5", "150", "75", "840", "420"]
    assert "multiply-adds: 984 -> 564 (57.3%)" in text
    assert text[-1] == "your own apply_fn takes the smaller arrays as they are"
    assert all(len(line) <= 100 for line in text)


def test_a_group_counts_every_step_of_a_loop():
    net = structures.get("scan-remat")
    found = nt.units(net.params, net.apply_fn, net.batch)
    [name] = [g.name for g in found.groups if g.kind == "neuron"]
    small = nt.shrink(net.params, net.apply_fn, net.batch, {name: [0, 1]})
    [group] = [g for g in small.report.groups if g.name == name]
    rows = net.batch.shape[0] * net.batch.shape[1]
    assert group.multiply_adds == (3 * rows * 3 * 8 * 6, 3 * rows * 3 * 8 * 4)
    assert group.activations == (3 * rows * 2 * 6, 3 * rows * 2 * 4)
    less = small.report.multiply_adds
    assert less.before - less.after == group.multiply_adds[0] - group.multiply_adds[1]


def test_a_function_with_sizes_of_its_own_does_not_take_smaller_arrays():
    def apply_fn(p, x):
        h = jax.nn.relu(x @ p["a"])
        return (h / 6.0) @ p["b"] + jax.numpy.zeros((4, 6), "float32") @ p["b"]

    params = {"a": normal(5, 6), "b": normal(6, 3)}
    small = nt.shrink(params, relaxed(apply_fn), data(4, 5), {"a": [0]})
    assert not small.report.as_it_is
    assert "report.changed" in str(small.report)


def test_work_of_loops_and_branches():
    def apply_fn(w, x):
        x = jax.lax.scan(lambda x, _: (x @ w, None), x, None, 5)[0]
        small = lambda x: x @ w[:, :2] @ w[:2]  # noqa: E731
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w, small, x)

    closed = jax.make_jaxpr(apply_fn)(np.zeros((4, 4)), np.zeros((3, 4)))
    # of the branches, that with the most
    assert work(closed.jaxpr) == (5 * 48 + 48, 5 * 12 + 18)
