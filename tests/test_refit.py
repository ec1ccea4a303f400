"""Best values on masks that are given: against other solvers, over all models."""

import functools

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from marks import only_fast, slow
from scipy.optimize import minimize

import nettrim_jax as nt
from nettrim_jax.results import DIRECT, MethodError, ParamsError, SolveError

FAST = ["bfloat16"]
MODELS = pytest.mark.parametrize("name", only_fast(FAST, models.MODELS))
MODES = ["parallel", "cascade"]
CASES = {"free": ("free", True), "fixed": ("fixed", True), "linear": ("free", False)}
# of the error: weights are rounded to bfloat16, and so is the network's arithmetic
ROUNDING = {"bfloat16": 0.02, "cast": 0.02, "linen-bfloat16": 0.02}


@functools.cache
def fitted(name, mode="parallel"):
    """A magnitude pruning of half of the weights, and its refit; done once."""
    model = models.get(name)
    settings = {"include": ".", "held_out": 0.0, "mode": mode}
    masked = nt.prune(
        model.params,
        model.apply_fn,
        model.batch,
        method=nt.Magnitude(nt.Sparsity(0.5)),
        **settings,
    )
    new = nt.refit(model.params, masked.mask, model.apply_fn, model.batch, **settings)
    return masked, new


def same_bits(one, two):
    return all(
        a.tobytes() == b.tobytes()
        for a, b in zip(models.arrays(one), models.arrays(two), strict=True)
    )


# ---- against other solvers


def loss(X, Y, relu, w, b):
    """What one unit's refit minimises, with its gradients in w and b."""
    z = X @ w + b
    off = np.where(Y > 0, z - Y, np.maximum(z, 0)) if relu else z - Y
    return off @ off, np.append(2 * X.T @ off, 2 * off.sum())


def least(X, Y, relu, keep, b, free):
    """The least loss with zeros where nothing is kept, by quasi-Newton steps."""
    moves = np.append(keep, free)

    def flat(v):
        full = np.append(np.zeros(len(keep)), b)
        full[moves] = v
        value, slope = loss(X, Y, relu, full[:-1], full[-1])
        return value, slope[moves]

    options = {"maxiter": 5000, "maxfun": 50000, "ftol": 1e-15, "gtol": 1e-10}
    start = np.append(np.zeros(len(keep)), b)[moves]
    return minimize(flat, start, jac=True, method="L-BFGS-B", options=options).fun


def network(relu=True):
    """Two layers in float64, half of each removed; some that are kept are zero."""
    rng = np.random.default_rng(3)
    sizes = (10, 7, 5)
    params, mask = {}, {}
    for i in range(2):
        w = rng.normal(size=sizes[i : i + 2])
        keep = rng.random(w.shape) < 0.5
        w[0] = np.where(keep[0], 0, w[0])  # a refit may need them
        params[f"{i}"] = {"w": w, "b": 0.3 * rng.normal(size=sizes[i + 1])}
        mask[f"{i}"] = {"w": keep, "b": np.ones(sizes[i + 1], bool)}

    def apply_fn(p, x):
        for i in range(2):
            x = x @ p[f"{i}"]["w"] + p[f"{i}"]["b"][None, :]
            x = jax.nn.relu(x) if relu or i == 0 else x
        return x

    x = rng.normal(size=(90, 10)) @ (np.eye(10) + 0.2 * rng.normal(size=(10, 10)))
    params, mask = jax.tree.map(jnp.asarray, (params, mask))
    return params, mask, apply_fn, jnp.asarray(x)


@pytest.mark.parametrize("mode", only_fast(["cascade"], MODES))
@pytest.mark.parametrize("case", only_fast(["free"], CASES))
def test_values_are_the_best_on_the_mask(mode, case):
    """Of every layer, from what feeds it in this mode, as L-BFGS finds them."""
    bias, relu = CASES[case]
    params, mask, apply_fn, x = network(relu)
    new = nt.refit(params, mask, apply_fn, x, mode=mode, bias=bias, held_out=0.0).params
    trained = fed = np.asarray(x)
    moved = 0
    for i in range(2):
        layers = (tree[f"{i}"] for tree in (params, mask, new))
        old, keep, now = (jax.tree.map(np.asarray, layer) for layer in layers)
        after = (lambda z: np.maximum(z, 0)) if relu or i == 0 else (lambda z: z)
        Y = after(trained @ old["w"] + old["b"])
        X, rectified = fed if mode == "cascade" else trained, relu or i == 0
        assert not now["w"][~keep["w"]].any()
        if bias == "fixed":
            np.testing.assert_array_equal(now["b"], old["b"])
        moved += np.sum((old["w"] == 0) & (now["w"] != 0))
        got = want = 0.0
        for j in range(Y.shape[1]):
            one = X, Y[:, j], rectified
            got += loss(*one, now["w"][:, j], now["b"][j])[0]
            want += least(*one, keep["w"][:, j], old["b"][j], bias == "free")
        # the last step gained less than a thousandth
        assert got <= 1.01 * want + 1e-6 * np.sum(Y**2), (i, got, want)
        trained = Y
        fed = after(fed @ now["w"] + now["b"])
    assert moved


@slow
@pytest.mark.parametrize("bias", ["free", "fixed"])
def test_of_a_linear_layer_they_are_least_squares(bias):
    rng = np.random.default_rng(5)
    x, w, b = rng.normal(size=(80, 9)), rng.normal(size=(9, 4)), rng.normal(size=4)
    keep = rng.random(w.shape) < 0.6
    params = {"w": jnp.asarray(w), "b": jnp.asarray(b)}
    mask = {"w": jnp.asarray(keep), "b": jnp.ones(4)}

    def apply_fn(p, x):
        return x @ p["w"] + p["b"][None, :]

    shown, settings = [], {"held_out": 0.0, "bias": bias}
    new = nt.refit(
        params,
        mask,
        apply_fn,
        jnp.asarray(x),
        **settings,
        progress=lambda *a: shown.append(a),
    )
    assert shown[-1] == (1, 1, "fitting")
    Y = x @ w + (b if bias == "free" else 0)
    for j in range(4):
        A = x[:, keep[:, j]]
        A = np.column_stack([A, np.ones(len(x))]) if bias == "free" else A
        want = np.linalg.lstsq(A, Y[:, j])[0]
        got = np.asarray(new.params["w"])[keep[:, j], j]
        got = np.append(got, new.params["b"][j]) if bias == "free" else got
        np.testing.assert_allclose(got, want, atol=1e-2)


# ---- over the models


@MODELS
@pytest.mark.parametrize("mode", only_fast(["parallel"], MODES))
def test_zeros_are_those_of_the_mask_and_errors_do_not_grow(name, mode):
    model = models.get(name)
    masked, new = fitted(name, mode)
    for old, leaf, keep, given in zip(
        *map(models.arrays, (model.params, new.params, new.mask, masked.mask)),
        strict=True,
    ):
        assert (old.shape, old.dtype) == (leaf.shape, leaf.dtype)
        assert not (keep & ~given).any()
        if leaf.shape == keep.shape and leaf.dtype.kind in "fV":
            assert not leaf[~given].any()
    slack = ROUNDING.get(name, 1e-5)
    pairs = zip(masked.report.sites, new.report.sites, strict=True)
    for before, after in pairs:
        assert int(after.result) == DIRECT and np.isnan(float(after.gap))
        if mode == "parallel":  # else later layers see other inputs
            assert float(after.error) <= float(before.error) + slack
    total = [float(pruning.report.deviation) for pruning in (new, masked)]
    assert np.isfinite(total).all()


@slow
@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("mode", MODES)
def test_where_all_is_kept_every_bit_stays(name, mode):
    model = models.get(name)
    mask = jax.tree.map(
        lambda a: np.ones(a.shape, bool) if hasattr(a, "shape") else a, model.params
    )
    answer = nt.refit(
        model.params, mask, model.apply_fn, model.batch, mode=mode, include="."
    )
    assert same_bits(answer.params, model.params)
    assert float(answer.report.deviation) == 0


@slow
@pytest.mark.parametrize("mode", MODES)
def test_layers_and_units_of_which_all_is_kept(mode):
    params, mask, apply_fn, x = network()
    mask["0"]["w"] = mask["0"]["w"].at[:, 2].set(True)
    mask["1"]["w"] = jnp.ones_like(mask["1"]["w"])
    new = nt.refit(params, mask, apply_fn, x, mode=mode).params
    assert same_bits(new["1"], params["1"])
    np.testing.assert_array_equal(new["0"]["w"][:, 2], params["0"]["w"][:, 2])
    assert new["0"]["b"][2] == params["0"]["b"][2]
    assert not np.array_equal(
        new["0"]["w"], jnp.where(mask["0"]["w"], params["0"]["w"], 0)
    )


@slow
def test_a_cascade_makes_up_for_what_was_lost_before():
    params, mask, apply_fn, x = network()
    parallel, cascade = (
        nt.refit(params, mask, apply_fn, x, mode=mode, held_out=0.0) for mode in MODES
    )
    assert cascade.report.deviation < parallel.report.deviation
    for one, two in zip(*map(jax.tree.leaves, (parallel.mask, mask)), strict=True):
        np.testing.assert_array_equal(one, two)


@slow
def test_held_out_rows_have_no_part():
    params, mask, apply_fn, x = network()
    (site, _) = nt.refit(params, mask, apply_fn, x, held_out=0.8).report.sites
    assert site.shape[1] == 18
    assert 2 * float(site.error) < float(site.held_out_error)


@slow
def test_padding_and_loaders():
    params, mask, apply_fn, x = network()
    want = nt.refit(params, mask, apply_fn, x, held_out=0.0).params
    padded = jnp.concatenate([x, 100 + x[:7]])
    weights = jnp.arange(len(padded)) < len(x)
    got = nt.refit(params, mask, apply_fn, padded, weights=weights, held_out=0.0)
    parts = iter([x[:40], x[40:]])
    loaded = nt.refit(params, mask, apply_fn, parts, held_out=0.0)
    for other in (got, loaded):
        for a, b in zip(*map(jax.tree.leaves, (other.params, want)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@slow
def test_units_that_nothing_shows_keep_their_values():
    """A scale of zero hides the first unit: its weights are as good as any."""
    params, mask, _, x = network()
    scale = jnp.asarray([0.0, 1, -1, 2, 1, 1, 1])

    def apply_fn(p, x):
        return jax.nn.relu((x @ p["w"]) * scale[None, :] + p["b"][None, :])

    answer = nt.refit(params["0"], mask["0"], apply_fn, x)
    want = jnp.where(mask["0"]["w"], params["0"]["w"], 0)
    np.testing.assert_array_equal(answer.params["w"][:, 0], want[:, 0])
    assert (np.asarray(answer.params["w"] != want)).any(0)[1:].all()


# ---- as a function


@slow
def test_under_jit_and_a_mask_that_cannot_be_looked_at():
    params, mask, apply_fn, x = network()
    want = nt.refit(params, mask, apply_fn, x)

    @jax.jit
    def call(params, mask):
        return nt.refit(params, mask, apply_fn, x)

    got = call(params, mask)
    for a, b in zip(*map(jax.tree.leaves, (got.params, want.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    # what could not be refused holds all the same
    mask["1"]["b"] = mask["1"]["b"].at[1].set(False)
    got = call(params, mask)
    assert got.params["1"]["b"][1] == 0 and not got.mask["1"]["b"][1]


@slow
def test_vmap_over_masks_is_a_loop():
    params, mask, apply_fn, x = network()
    other = jax.tree.map(lambda a: a | (a.ndim == 2) & ~a[::-1], mask)
    masks = jax.tree.map(lambda *a: jnp.stack(a), mask, other)

    def call(mask):
        return nt.refit(params, mask, apply_fn, x).params

    stacked = jax.vmap(call)(masks)
    for i in range(2):
        one = call(jax.tree.map(lambda a: a[i], masks))  # noqa: B023
        for a, b in zip(*map(jax.tree.leaves, (stacked, one)), strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-6)


# ---- refusals


@slow
def test_not_a_number_is_no_success():
    w, x = models.normal(8, 8), models.data(50, 8)
    mask = np.arange(64).reshape(8, 8) % 2

    def overflows(w, x):
        return (x * 1e38) @ w * 1e5

    with pytest.raises(SolveError, match="1 of 1 layers met what is not a number") as e:
        nt.refit(w, mask, overflows, x)
    with pytest.warns(UserWarning, match="not a number"):
        kept = nt.refit(w, mask, overflows, x, on_failure="warn").params
    np.testing.assert_array_equal(e.value.pruned.params, kept)
    np.testing.assert_array_equal(kept, w * jnp.asarray(mask, w.dtype))


@pytest.mark.parametrize(
    "change, settings, says",
    [
        (lambda m: m["0"], {}, "expected a mask of the params' tree"),
        (
            lambda m: m | {"1": {"w": m["1"]["w"].T, "b": m["1"]["b"]}},
            {},
            r"refit: 1/w: expected a mask of shape \[7, 5\], got \[5, 7\]",
        ),
        (
            lambda m: m | {"1": {"w": m["1"]["w"], "b": None}},
            {},
            r"refit: 1/b: expected a mask of shape \[5\], got None",
        ),
        (
            lambda m: m | {"1": {"w": m["1"]["w"], "b": m["1"]["b"].at[3].set(False)}},
            {},
            "refit: 1/b: the mask removes 1 of its 5 entries that no layer",
        ),
        (lambda m: m, {"exclude": "0"}, r"refit: 0/w: .*\(exclude='0'\)"),
    ],
)
def test_masks_that_do_not_fit(change, settings, says):
    params, mask, apply_fn, x = network()
    with pytest.raises(ParamsError, match=says):
        nt.refit(params, change(mask), apply_fn, x, **settings)


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"bias": "penalized"}, r"refit\(bias='penalized'\): expected one of"),
        ({"mode": "serial"}, r"refit\(mode='serial'\)"),
        ({"held_out": 1.0}, r"refit\(held_out=1.0\)"),
        ({"key": "a"}, r"refit\(key='a'\)"),
    ],
)
def test_settings_out_of_range(settings, says):
    params, mask, apply_fn, x = network()
    with pytest.raises(MethodError, match=says):
        nt.refit(params, mask, apply_fn, x, **settings)


def test_params_that_were_pruned_already():
    w, x = models.normal(8, 4), models.data(60, 8)
    apply_fn = lambda w, x: jax.nn.relu(x @ w)  # noqa: E731
    pruned = nt.prune(w, apply_fn, x, method=nt.Magnitude(nt.Sparsity(0.5)))
    with pytest.warns(UserWarning, match="zero in params already.*the trained params"):
        nt.refit(pruned.params, pruned.mask, apply_fn, x)
