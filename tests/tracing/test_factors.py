"""A weight times a constant is a layer; what depends on no data is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt

ROW = np.linspace(0.5, 2.0, 6).astype(np.float32)[None, :]
COLUMN = np.linspace(-1.0, 3.0, 8).astype(np.float32)[:, None]

# the factor in a program's own words, and as an array
SPELLINGS = {
    "times": (lambda w: w * 0.25, 0.25),
    "by": (lambda w: 0.25 * w, 0.25),
    "over": (lambda w: w / 3, 1 / 3),
    "minus": (lambda w: -w, -1.0),
    "row": (lambda w: w * jnp.tile(ROW, (8, 1)), ROW),
    "column": (lambda w: w / jnp.broadcast_to(COLUMN, w.shape), 1 / COLUMN),
    "root": (lambda w: w * jnp.sqrt(jnp.float32(2 / w.shape[0])), 0.5),
    "twice": (lambda w: (-(w.T * 0.5) * ROW.T).T, -0.5 * ROW),
    "cast": (lambda w: (w.astype(jnp.bfloat16) * 2).astype(jnp.float32), 2.0),
}


@pytest.fixture(scope="module")
def data():
    """Weights and rows."""
    rng = np.random.default_rng(0)
    # multiples of 1/8, which half precision holds
    w = (rng.integers(-8, 8, (8, 6)) / 8 + 1 / 16).astype(np.float32)
    return jnp.asarray(w), jnp.asarray(rng.normal(size=(64, 8)).astype(np.float32))


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_constant_factor_hides_no_layer(name, data):
    w, x = data
    spell, factor = SPELLINGS[name]
    found = nt.sites({"w": w}, lambda p, x: jax.nn.relu(x @ spell(p["w"])), x).sites
    assert [(site.path, site.response) for site in found] == [("w", "relu")]
    method = nt.SparseGPT(nt.Sparsity(0.5))
    scaled = nt.prune({"w": w}, lambda p, x: x @ spell(p["w"]), x, method=method)
    whole = {"w": w * np.float32(factor)}
    plain = nt.prune(whole, lambda p, x: x @ p["w"], x, method=method)
    np.testing.assert_array_equal(scaled.mask["w"], plain.mask["w"])
    np.testing.assert_allclose(
        scaled.params["w"] * factor, plain.params["w"], rtol=2e-4, atol=1e-5
    )


METHODS = {
    "magnitude": nt.Magnitude(nt.Sparsity(0.5)),
    "wanda": nt.Wanda(nt.Sparsity(0.5)),
    "taylor": nt.Taylor(nt.Sparsity(0.5), loss=lambda p, x: jnp.sum(x @ p["w"]) ** 2),
    "obd": nt.OBD(nt.Sparsity(0.5)),
    "nettrim": nt.NetTrim(epsilon=0.3),
    "sparsity": nt.Sparsity(0.5),
    "network": nt.Sparsity(0.5, scope="network"),
}


QUICK = ["magnitude", "wanda", "taylor"]


@pytest.mark.parametrize("name", only_fast(QUICK, METHODS))
def test_every_method_sees_the_weights_that_the_rows_meet(name, data):
    w, x = data
    factor = ROW / 2

    def scaled(p, x):
        return x @ (p["w"] * factor)

    method = METHODS[name]
    other = method
    if name == "taylor":
        other = nt.Taylor(method.pattern, loss=lambda p, x: jnp.sum(scaled(p, x)) ** 2)
    one = nt.prune({"w": w}, scaled, x, method=other)
    two = nt.prune({"w": w * factor}, lambda p, x: x @ p["w"], x, method=method)
    np.testing.assert_array_equal(one.mask["w"], two.mask["w"])
    np.testing.assert_allclose(
        one.params["w"] * factor, two.params["w"], rtol=1e-3, atol=1e-4
    )
    assert int(one.report.nonzeros) == int(np.count_nonzero(one.params["w"]))


def test_what_is_kept_keeps_its_bits(data):
    w, x = data
    pruned = nt.prune(
        {"w": w},
        lambda p, x: x @ (p["w"] / 3),
        x,
        method=nt.Magnitude(nt.Sparsity(0.5)),
    )
    kept = np.asarray(pruned.mask["w"])
    np.testing.assert_array_equal(pruned.params["w"], np.where(kept, w, 0))


def test_a_constant_mask_stays(data):
    w, x = data
    off = (np.arange(48).reshape(8, 6) % 3 == 0).astype(np.float32)
    pruned = nt.prune({"w": w}, lambda p, x: x @ (p["w"] * (1 - off)), x)
    kept = np.asarray(pruned.mask["w"])
    assert not (kept & (off == 1)).any()
    assert (np.asarray(pruned.params["w"])[off == 1] == 0).all()


@slow
def test_refit_and_cascade_and_jit_carry_the_factor(data):
    w, x = data
    params = {"a": w, "b": w[:6, :4]}

    def apply_fn(p, x):
        return jax.nn.relu(x @ (p["a"] * ROW)) @ (p["b"] / 4)

    def plain(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    factors = {"a": ROW, "b": np.float32(0.25)}
    whole = jax.tree.map(jnp.multiply, params, factors)
    method = nt.Wanda(nt.Sparsity(0.5))
    one = nt.prune(params, apply_fn, x, method=method, mode="cascade")
    two = nt.prune(whole, plain, x, method=method, mode="cascade")
    fits = nt.refit(params, one.mask, apply_fn, x, mode="cascade")
    same = nt.refit(whole, two.mask, plain, x, mode="cascade")
    for name in params:
        np.testing.assert_array_equal(one.mask[name], two.mask[name])
        np.testing.assert_allclose(
            fits.params[name] * factors[name], same.params[name], rtol=1e-3, atol=1e-4
        )

    @jax.jit
    def inside(params, x):
        return nt.prune(params, apply_fn, x, method=method)

    twin = nt.prune(params, apply_fn, x, method=method)
    found = inside(params, x)
    for name in params:
        np.testing.assert_array_equal(found.mask[name], twin.mask[name])


def test_a_scan_and_a_convolution_carry_the_factor(data):
    w, x = data
    stack = jnp.stack([w[:6], w[2:] / 2])  # [2, 6, 6]

    def scanned(p, x):
        def step(h, v):
            return jnp.tanh(h @ (v * ROW)), None

        return jax.lax.scan(step, x[:, :6], p["w"])[0]

    (site,) = nt.sites({"w": stack}, scanned, x).sites
    assert site.path == "w"

    def conv(p, x):
        kernel = -p["k"].reshape(2, 2, 2, 6) * 0.5
        image = x[:, :, None, None].reshape(-1, 2, 2, 2)
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    (site,) = nt.sites({"k": w}, conv, x).sites
    assert site.kind == "conv"


@pytest.mark.parametrize(
    "name, apply_fn, why",
    [
        (
            "other leaves",
            lambda p, x: x @ (p["w"] + (p["a"] * 2.5 + 1) @ p["b"]),
            "do not depend on the batch",
        ),
        (
            "constants",
            lambda p, x: x @ p["w"] + jnp.ones((1, 4), x.dtype) @ p["b"],
            "do not depend on the batch",
        ),
        (
            "two factors",
            lambda p, x: x[:, :4] @ (p["b"] * 2) + x[:, 4:] @ (p["b"] * 3) + x @ p["w"],
            "by one constant here and by another there",
        ),
        ("zeros", lambda p, x: x[:, :4] @ (p["b"] * 0.0) + x @ p["w"], "by zeros"),
    ],
)
def test_what_is_no_layer_has_its_reason(name, apply_fn, why, data):
    w, x = data
    params = {"w": w, "a": w[:, :4], "b": w[:4]}
    found = nt.sites(params, apply_fn, x)
    assert [site.path for site in found.sites] in (["w"], [])
    assert why in dict(found.skipped)["b"]


def test_a_constant_initial_state_is_no_reason(data):
    w, x = data

    def apply_fn(p, x):
        h = jnp.tanh(jnp.zeros((len(x), 6), x.dtype) @ p["u"] + x @ p["w"])
        return jnp.tanh(h @ p["u"] + x @ p["w"])

    found = nt.sites({"w": w, "u": w[:6]}, apply_fn, x)
    assert {site.path for site in found.sites} == {"w", "u"}


@slow
def test_what_is_multiplied_by_zero_stays_zero_if_zeros_may_return(data):
    w, x = data
    on = np.tri(8, 6, dtype=np.float32)

    def apply_fn(p, x):
        return x @ (p["w"] * on)

    pruned = nt.prune({"w": w}, apply_fn, x, method=nt.Sparsity(0.1), revive=True)
    assert not (np.asarray(pruned.mask["w"]) & (on == 0)).any()
