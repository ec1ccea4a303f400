"""Routines, in numbers of their own: equal if they compute the same, anywhere."""

import functools

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

from nettrim_jax.tracing import canonical, jaxprs
from nettrim_jax.tracing.jaxprs import Block
from nettrim_jax.tracing.sites import trace

LEAVES = {name: models.normal(8, 8, seed=i) for i, name in enumerate("abc")}
X = models.data(4, 8)
COUNT = np.arange(8, dtype="float32")[None]


@jax.custom_jvp
def opaque(z):
    return jnp.sin(z)


opaque.defjvp(lambda primals, tangents: (opaque(*primals), tangents[0]))


def dense(w, x, add=1.0, relu=jax.nn.relu):
    return relu(x @ w + add)


def loop(w, x, add=COUNT, length=3, scale=2.0):
    def step(x, _):
        return jnp.tanh(x @ w + add) * scale, None

    return jax.lax.scan(step, x, None, length)[0]


def branch(w, x, first=jnp.sin, second=jnp.cos):
    return jax.lax.cond(x[0, 0] > 0, first, second, x) @ w


def until(w, x, limit=1.0):
    return jax.lax.while_loop(
        lambda z: jnp.max(jnp.abs(z)) > limit, lambda z: 0.5 * z, x @ w
    )


def reduced(w, x, add=0.0):
    computation = lambda a, b: a + b + add  # noqa: E731
    return jax.lax.reduce(x @ w, jnp.float32(0), computation, [1])


by_rule = functools.partial(dense, relu=opaque)
SAME = {
    "dense": (dense, dense),
    "through a call": (dense, jax.jit(dense)),
    "relu": (dense, functools.partial(dense, relu=lambda z: jnp.maximum(z, 0.0))),
    # derivatives that a function declares for itself are not run
    "rule": (by_rule, functools.partial(dense, relu=jnp.sin)),
    "loop": (loop, loop),
    # a constant is an operand of the loop, so its values do not matter
    "constant": (loop, functools.partial(loop, add=2 * COUNT)),
    "branch": (branch, branch),
    "while": (until, until),
}
OTHER = {
    "literal": (dense, functools.partial(dense, add=2.0)),
    "zero": tuple(functools.partial(dense, add=zero) for zero in (0.0, -0.0)),
    "relu": (dense, functools.partial(dense, relu=jax.nn.relu6)),
    "order": (lambda w, x: x - x @ w, lambda w, x: x @ w - x),
    "operand": (lambda w, x: x @ w * x, lambda w, x: x @ w * jnp.sin(x)),
    "axis": (lambda w, x: jnp.flip(x @ w, 0), lambda w, x: jnp.flip(x @ w, 1)),
    "shape": (lambda w, x: x @ w, lambda w, x: x[:2] @ w),
    "dtype": (lambda w, x: x @ w, lambda w, x: x.astype("int8").astype("float32") @ w),
    "results": (lambda w, x: (x, x @ w), lambda w, x: x @ w),
    "length": (loop, functools.partial(loop, length=4)),
    "within a loop": (loop, functools.partial(loop, scale=3.0)),
    "branches": (branch, functools.partial(branch, first=jnp.cos, second=jnp.sin)),
    "while": (until, functools.partial(until, limit=2.0)),
    "reduction": (reduced, functools.partial(reduced, add=1.0)),
}


def segment(f, leaf="a", before=0):
    """``f(w, x)`` with one of the leaves, behind some other operations."""

    def start(x):
        for _ in range(before):
            x = jnp.exp(x)
        return x

    network = trace(lambda p, x: f(p[leaf], start(x)), LEAVES, X)
    block = network.flat.block
    uses = [site.uses for site in network.sites]
    part = Block((), block.ops[before:], block.outputs)
    return network, canonical.segment(network, part, uses)


@pytest.mark.parametrize("name", SAME)
def test_the_same_computation_is_equal(name):
    first, second = SAME[name]
    (_, one), (_, two) = segment(first), segment(second, "c", before=3)
    assert one.routine == two.routine
    assert hash(one.routine) == hash(two.routine)
    assert (one.reads, one.makes) != (two.reads, two.makes)


@pytest.mark.parametrize("name", OTHER)
def test_another_computation_is_not_equal(name):
    first, second = OTHER[name]
    assert segment(first)[1].routine != segment(second)[1].routine


def test_what_is_captured_counts():
    network, whole = segment(dense)
    none = canonical.segment(network, network.flat.block)
    assert none.routine != whole.routine
    assert whole.routine.sites[0][0].op in whole.routine.block.ops


@pytest.mark.parametrize("name", SAME)
def test_it_computes_what_the_network_does(name):
    network, one = segment(SAME[name][1], "b", before=2)
    given = {
        **dict(zip(network.flat.consts, network.consts, strict=True)),
        **dict(zip(network.flat.block.inputs, [*LEAVES.values(), X], strict=True)),
    }
    jaxprs.run_block(network.flat.block, given)
    env = {
        new: given[slot]
        for new, slot in zip(one.routine.block.inputs, one.reads, strict=True)
    }
    jaxprs.run_block(one.routine.block, env)
    for new, slot in zip(one.routine.block.outputs, one.makes, strict=True):
        np.testing.assert_array_equal(env[new], given[slot])
