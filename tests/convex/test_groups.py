"""Penalties of groups: the prox in any metric, the dual norm, zeros of whole groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow
from penalized import GROUPS, W0, T, X

import nettrim_jax as nt
from nettrim_jax.results import CONVERGED, NetTrimError, ProgramError

# where each group of a matrix of 12 inputs and 3 units is, by hand
rows, columns = np.indices((12, 3))
MEMBERS = {
    "inputs": rows,
    "neurons": columns,
    "channels": rows % 4,
    "blocks": rows // 3 * 3 + columns,
    "sparse-inputs": rows,
    "sparse-neurons": columns,
}
every = pytest.mark.parametrize("name", only_fast(["sparse-neurons"], GROUPS))
spreads = pytest.mark.parametrize("spread", only_fast([1.0], [0.0, 0.1, 1.0, 4.0]))


def weights(name):
    """Of the groups, by number, and of the single weights."""
    penalty, members = GROUPS[name], MEMBERS[name]
    magnitude = getattr(penalty, "magnitude", 0.0)
    norms = np.ravel(penalty.weight) * np.ones(members.max() + 1)
    return norms, np.broadcast_to(magnitude, (12, 3))


def value(name, W, entries):
    norms, magnitudes = weights(name)
    sizes = [
        np.linalg.norm((entries * W)[MEMBERS[name] == g]) for g in range(len(norms))
    ]
    return norms @ sizes + np.sum(magnitudes * np.abs(W))


def somewhere(name, rng, spread):
    """A penalty with entries of its own, a point, and steps, one per input."""
    entries = np.exp(rng.normal(size=(12, 3)))
    W, steps = 2 * rng.normal(size=(12, 3)), np.exp(spread * rng.normal(size=(12, 1)))
    _, magnitudes = weights(name)
    scaled = GROUPS[name].scaled(jnp.asarray(entries))
    if magnitudes.any():  # which the factor multiplies as well
        scaled = scaled._with(jnp.asarray(magnitudes))
    return scaled, entries, W, steps


@every
def test_members_and_value(name, rng):
    penalty, entries, W, _ = somewhere(name, rng, 1.0)
    np.testing.assert_array_equal(GROUPS[name].members((12, 3)), MEMBERS[name])
    np.testing.assert_array_equal(GROUPS[name].T.members((3, 12)), MEMBERS[name].T)
    np.testing.assert_allclose(penalty.value(jnp.asarray(W)), value(name, W, entries))


@every
@spreads
def test_prox_agrees_with_cvxpy(name, spread, rng):
    cp = pytest.importorskip("cvxpy")
    penalty, entries, W, steps = somewhere(name, rng, spread)
    V = penalty.prox(jnp.asarray(W), jnp.asarray(steps))
    P, (norms, magnitudes) = cp.Variable((12, 3)), weights(name)
    inside = [MEMBERS[name] == g for g in range(len(norms))]
    total = sum(
        weight * cp.norm(cp.multiply(entries[group], P[group]), 2)
        for weight, group in zip(norms, inside, strict=True)
    )
    total += cp.sum(cp.multiply(magnitudes, cp.abs(P)))
    root = np.sqrt(1 / (2 * steps)) * np.ones((1, 3))
    total += cp.sum_squares(cp.multiply(root, P - W))
    problem = cp.Problem(cp.Minimize(total))
    problem.solve("CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    ours = value(name, np.asarray(V), entries) + np.sum((V - W) ** 2 / (2 * steps))
    assert ours <= problem.value * (1 + 1e-7)
    np.testing.assert_allclose(V, P.value, atol=2e-4)
    turned = penalty.T.prox(jnp.asarray(W.T), jnp.asarray(steps.T))
    np.testing.assert_allclose(turned.T, V, rtol=1e-13)


@every
@spreads
def test_prox_is_stationary_and_zero_where_it_must_be(name, spread, rng):
    penalty, entries, W, steps = somewhere(name, rng, spread)
    V = np.asarray(penalty.prox(jnp.asarray(W), jnp.asarray(steps)))
    pull, (norms, magnitudes) = (W - V) / steps, weights(name)
    for g, weight in enumerate(norms):
        inside = MEMBERS[name] == g
        v, omega = V[inside], entries[inside]
        rest = pull[inside] - magnitudes[inside] * np.sign(v)
        if not v.any():
            rest = np.maximum(np.abs(pull[inside]) - magnitudes[inside], 0)
            assert np.linalg.norm(rest / omega) <= weight * (1 + 1e-12)
            continue
        there = v != 0
        expected = weight * omega**2 * v / np.linalg.norm(omega * v)
        np.testing.assert_allclose(rest[there], expected[there], rtol=1e-9)
        assert (np.abs(pull[inside][~there]) <= magnitudes[inside][~there]).all()


@slow
@every
@spreads
def test_prox_has_the_derivative_that_differences_say(name, spread, rng):
    penalty, _, W, steps = somewhere(name, rng, spread)
    both = [(jnp.asarray(a), jnp.asarray(rng.normal(size=a.shape))) for a in (W, steps)]
    C = jnp.asarray(rng.normal(size=W.shape))

    def along(s):
        V, step = (a + s * t for a, t in both)
        return jnp.sum(C * penalty.prox(V, step))

    h, slope = 1e-6 * float(steps.min()), float(jax.grad(along)(0.0))
    assert slope == pytest.approx(float((along(h) - along(-h)) / (2 * h)), rel=1e-4)
    second = jax.grad(jax.grad(along))(0.0)
    h = 1e-5 * float(steps.min())
    difference = (jax.grad(along)(h) - jax.grad(along)(-h)) / (2 * h)
    assert float(second) == pytest.approx(float(difference), rel=1e-4, abs=1e-6)


@every
@pytest.mark.parametrize("scale", only_fast([1.0], [0.1, 1.0, 10.0]))
def test_conjugate_shrinks_as_far_as_it_must(name, scale, rng):
    penalty, entries, _, _ = somewhere(name, rng, 1.0)
    A = scale * rng.normal(size=(12, 3))
    shrink, zero = penalty.T.conjugate(jnp.asarray(A.T))
    assert shrink.shape == (3,) and float(zero) == 0
    assert ((shrink >= 0) & (shrink <= 1)).all()
    norms, magnitudes = weights(name)

    def most(A):
        """How far the dual norm is used up, group by group."""
        rest = np.maximum(np.abs(A) - magnitudes, 0) / entries
        return [
            np.linalg.norm(rest[MEMBERS[name] == g]) / weight
            for g, weight in enumerate(norms)
        ]

    used = np.asarray(most(A * np.asarray(shrink)[None, :]))
    assert used.max() <= 1 + 1e-12
    if "neurons" in name:  # nothing but itself shrinks a unit
        alone = np.asarray(most(A)) <= 1
        np.testing.assert_allclose(used[~alone], 1, rtol=1e-8)
        np.testing.assert_array_equal(np.asarray(shrink)[alone], 1)
    else:
        assert (shrink == 1).all() or used.max() == pytest.approx(1, rel=1e-8)
    # so no W gains
    for size in (1e-3, 1.0, 1e3):
        W = size * rng.normal(size=(12, 3))
        gain = np.sum(A * np.asarray(shrink)[None, :] * W) - value(name, W, entries)
        assert gain <= 1e-9 * size


@every
def test_finite_derivatives_at_zero(name):
    step = jnp.ones((12, 1))
    jacobian = jax.jit(jax.jacrev(lambda W: GROUPS[name].prox(W, step)))
    assert jnp.isfinite(jacobian(jnp.zeros((12, 3)))).all()


@slow
@every
def test_reweighting_brings_zeros(name):
    Y = X @ W0 + T
    program = nt.linear_program(X, Y, 0.4 * np.linalg.norm(Y), penalty=GROUPS[name])
    first = nt.solve(program)
    penalty = program.penalty.reweighted(first.W.T, 0.1)
    lighter = np.ravel(penalty.weight) <= np.ravel(program.penalty.weight)
    assert lighter.all()
    again = nt.linear_program(X, Y, 0.4 * np.linalg.norm(Y), penalty=penalty.T)
    found = nt.solve(again)
    assert int(found.result) == CONVERGED
    assert int((found.W != 0).sum()) <= int((first.W != 0).sum())


# ---- through the public door


def one(groups):
    """A layer whose neurons, inputs or channels are zero, of a small network."""
    rng = np.random.default_rng(0)
    filters = rng.normal(size=(3, 3, 4, 6)) * np.geomspace(1, 0.01, 6)
    params = {
        "conv": jnp.asarray(filters, jnp.float32),
        "head": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32),
    }
    # what two channels say the other two say as well
    images = rng.normal(size=(40, 6, 6, 2))
    images = np.concatenate([images, 0.1 * images], axis=-1).astype(np.float32)

    def apply_fn(params, x):
        x = jax.lax.conv_general_dilated(
            x,
            params["conv"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jax.nn.relu(x).mean((1, 2)) @ params["head"]

    method = {"conv": nt.NetTrim(0.3, penalty=nt.GroupL1(groups)), "head": None}
    return nt.prune(params, apply_fn, jnp.asarray(images), method=method)


@slow
@pytest.mark.parametrize("groups", ["channels", "inputs"])
def test_what_is_said_twice_goes(groups):
    pruned = one(groups)
    kept = np.asarray(pruned.mask["conv"])
    # all places and filters of a channel, or none
    assert not kept[:, :, 2:].any() and kept[:, :, :2].any((0, 1, 3)).all()
    site = pruned.report.sites[0]
    assert float(site.error) <= 0.3 * (1 + 1e-3)
    assert int(site.bare_inputs) == 2 and int(site.bare_units) == 0
    assert "removable, no weight is left: 2 channels of conv" in str(pruned.report)


@slow
def test_neurons_go_whole():
    pruned = one("neurons")
    kept = np.asarray(pruned.mask["conv"]).reshape(36, 6)
    assert (kept.all(axis=0) | ~kept.any(axis=0)).all()
    gone = int((~kept.any(axis=0)).sum())
    assert 0 < gone < 6 and int(pruned.report.sites[0].bare_units) == gone
    assert "removable" in str(pruned.report)


@pytest.mark.parametrize(
    "penalty, says",
    [
        (nt.GroupL1("rows"), "groups that are one of"),
        (nt.GroupL1((4,)), "groups that are one of"),
        (nt.GroupL1((5, 1)), r"whole groups of 5 x 1 in W \[12, 3\]"),
        (nt.GroupL1("channels"), "how many channels"),
        (nt.GroupL1("channels", channels=5), "whole groups of 5 channels"),
        (nt.GroupL1("inputs", np.ones(12)), r"broadcast to the groups \[12, 1\]"),
        (nt.GroupL1("inputs", 0.0), "positive, finite penalty weights"),
        (nt.SparseGroup("inputs", 1.0, -1.0), "at least 0 of single magnitudes"),
        (nt.SparseGroup("inputs", 1.0, np.ones(5)), r"broadcast to W \[12, 3\]"),
    ],
    ids=repr,
)
def test_refusals(penalty, says):
    with pytest.raises(ProgramError, match=says):
        nt.linear_program(X, X @ W0, 1.0, penalty=penalty)


def test_prune_says_which_layer_has_no_whole_groups():
    with pytest.raises(NetTrimError, match=r"w: program: expected whole groups of 5 x"):
        nt.prune(
            {"w": jnp.ones((12, 3), jnp.float32)},
            lambda params, x: x @ params["w"],
            jnp.asarray(X, jnp.float32),
            method=nt.NetTrim(penalty=nt.GroupL1((5, 1))),
        )
