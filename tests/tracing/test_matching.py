"""The outputs of one program found in another, and what reaches past them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nettrim_jax.tracing import jaxprs, matching

W, X = jnp.ones((3, 3)), jnp.ones((4, 3))
TABLE = np.linspace(0, 1, 12).reshape(4, 3)


def network(w, x, table=TABLE):
    def step(h, _):
        return jnp.tanh(h @ w + jnp.asarray(table)), None

    return jax.lax.scan(step, x, None, length=2)[0]


def programs(loss, of=network):
    return [jaxprs.flatten(jax.make_jaxpr(f)(W, X)) for f in (of, loss)]


def found(loss, of=network):
    """The number of places where the loss is cut, and whether weights go past them."""
    inner, (flat, consts) = programs(loss, of)
    names = matching.names_of(*inner)
    wanted = {names[ref] for ref in inner[0].block.outputs}
    cut = matching.cut_of(flat, matching.names_of(flat, consts), wanted)
    past = matching.around(flat, {op.id for op in cut}, {0})
    return len(cut), bool(past)


def two(w, x):
    h = x @ w
    return h, jnp.exp(h)


CASES = {
    "itself": (lambda w, x: jnp.sum(network(w, x) ** 2), (1, False)),
    "wrapped": (lambda w, x: jnp.sum(jax.jit(network)(w, x) - x), (1, False)),
    "twice the same": (
        lambda w, x: jnp.sum(network(w, x)) + jnp.sum(network(w, x) ** 2),
        (2, False),
    ),
    "decay": (lambda w, x: jnp.sum(network(w, x)) + jnp.sum(w**2), (1, True)),
    "another constant": (
        lambda w, x: jnp.sum(network(w, x, 1 + TABLE)),
        (0, True),
    ),
    "other inputs": (lambda w, x: jnp.sum(network(w, 2 * x)), (0, True)),
    "another step": (
        lambda w, x: jnp.sum(
            jax.lax.scan(lambda h, _: (jnp.sin(h @ w), None), x, None, length=2)[0]
        ),
        (0, True),
    ),
    "nothing": (lambda w, x: jnp.sum(x), (0, False)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_network_is_found_in_its_loss(name):
    loss, expected = CASES[name]
    assert found(loss) == expected


def test_of_outputs_that_are_made_of_others_these_are_the_cut():
    def both(w, x):
        h, e = two(w, x)
        return jnp.sum(h * e)

    def last(w, x):
        return jnp.sum(two(w, x)[1])

    inner, (flat, consts) = programs(both, two)
    names = matching.names_of(flat, consts)
    wanted = {matching.names_of(*inner)[ref] for ref in inner[0].block.outputs}
    assert [op.name for op in matching.cut_of(flat, names, wanted)] == ["dot_general"]
    assert found(both, two) == (1, False)
    inner, (flat, consts) = programs(last, two)
    cut = matching.cut_of(flat, matching.names_of(flat, consts), wanted)
    assert [op.name for op in cut] == ["exp"]
