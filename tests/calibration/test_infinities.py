"""Infinities that are meant pass; those that reach a layer are refused by name."""

import functools

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.results import BatchError, ParamsError

D, T = 8, 6
SEEN = np.tril(np.ones((1, T, T), bool))
CAUSAL = np.where(SEEN, 0, -np.inf).astype(np.float32)
HIDDEN = np.arange(D) % 4 == 3
VOCABULARY = np.where(HIDDEN, -np.inf, 0).astype(np.float32)
X = models.data(40 * T, D).reshape(40, T, D)
PARAMS = {name: models.normal(D, D, seed=i) for i, name in enumerate("qkvo")}
METHODS = {
    "magnitude": nt.Magnitude(nt.Sparsity(0.5)),
    "nettrim": nt.NetTrim(epsilon=0.2),
    "reconstruct": nt.Reconstruct(nt.Sparsity(0.5)),
    "sparsegpt": nt.SparseGPT(nt.Sparsity(0.5)),
    "layerobs": nt.LayerOBS(nt.Sparsity(0.5)),
}


def attention(params, x, mask, last=lambda y: y):
    q, k, v = (x @ params[name] for name in "qkv")
    weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) / 3 + mask)
    return last((weights @ v) @ params["o"])


def plus(y, offset):
    """The sum with one offset per unit."""
    return y + offset.reshape((1,) * (y.ndim - 1) + (-1,))


def same(one, other, names="qkvo"):
    for name in names:
        np.testing.assert_array_equal(one.params[name], other.params[name])
        np.testing.assert_array_equal(one.mask[name], other.mask[name])


@functools.cache
def reference(name, mode):
    def apply_fn(params, x):
        return attention(params, x, jnp.where(SEEN, 0, -jnp.inf))

    return nt.prune(PARAMS, apply_fn, X, method=METHODS[name], mode=mode)


CASES = [("magnitude", "parallel")]
CASES += [pytest.param("magnitude", "cascade", marks=slow)]
CASES += [
    pytest.param(name, mode, marks=slow)
    for name in ("nettrim", "reconstruct", "sparsegpt")
    for mode in ("parallel", "cascade")
]


@pytest.mark.parametrize("name, mode", CASES)
def test_a_mask_as_a_buffer_and_in_the_batch(name, mode):
    """It is as good as one that the network makes itself."""
    wanted = reference(name, mode)
    settings = {"method": METHODS[name], "mode": mode}
    params = {**PARAMS, "mask": CAUSAL}
    buffer = nt.prune(params, lambda p, x: attention(p, x, p["mask"]), X, **settings)
    same(buffer, wanted)
    np.testing.assert_array_equal(buffer.params["mask"], CAUSAL)
    assert buffer.mask["mask"].all()
    assert dict(buffer.report.skipped).keys() == {"mask"}
    batch = {"x": X, "mask": CAUSAL}
    apply_fn = lambda p, b: attention(p, b["x"], b["mask"])  # noqa: E731
    same(nt.prune(PARAMS, apply_fn, batch, **settings), wanted)
    assert float(buffer.report.deviation) == float(wanted.report.deviation)
    stream = [{**batch, "x": X[:20]}, {**batch, "x": X[20:]}]
    pruned = nt.prune(PARAMS, apply_fn, iter(stream), **settings)
    assert np.isfinite(float(pruned.report.deviation))


LOGITS = {
    "where": lambda y: jnp.where(plus(jnp.zeros_like(y), VOCABULARY) < 0, -jnp.inf, y),
    "add": lambda y: plus(y, VOCABULARY),
    "computed": lambda y: plus(y, jnp.where(HIDDEN, -jnp.inf, 0)),
}


@pytest.mark.parametrize("last", LOGITS)
@pytest.mark.parametrize(
    "name",
    ["magnitude", *(pytest.param(n, marks=slow) for n in list(METHODS)[1:])],
)
def test_logits_that_are_infinite(name, last):
    """The layer before them is pruned as it is without; they move by nothing."""
    settings = {"method": METHODS[name]}
    plain = nt.prune(PARAMS, lambda p, x: attention(p, x, 0), X, **settings)

    def apply_fn(params, x):
        return attention(params, x, 0, LOGITS[last])

    pruned = nt.prune(PARAMS, apply_fn, X, **settings)
    if name != "reconstruct":  # which asks how far the output moves
        same(pruned, plain)
    before, after = (apply_fn(p, X)[..., ~HIDDEN] for p in (PARAMS, pruned.params))
    moved = np.linalg.norm(after - before) / np.linalg.norm(before)
    np.testing.assert_allclose(pruned.report.deviation, moved, rtol=1e-5)
    site = pruned.report.sites[-1]
    wanted = plain.report.sites[-1]
    if name != "reconstruct":
        assert float(site.error) == float(wanted.error)


@slow
def test_an_infinite_offset_behind_a_bias():
    """A hidden unit is fitted as if nothing hid it, and its bias may move."""
    params = {"w": models.normal(D, D), "b": models.normal(D), "mask": VOCABULARY}
    x = models.data(200, D)

    def apply_fn(params, x):
        return plus(plus(x @ params["w"], params["b"]), params["mask"])

    pruned = nt.prune(params, apply_fn, x, method=nt.NetTrim(epsilon=0.3), held_out=0)
    assert np.isfinite(pruned.params["b"]).all()
    before, after = ((x @ p["w"]) for p in (params, pruned.params))
    move = pruned.params["b"] - params["b"]
    off = plus(after - before, move)
    size = plus(before, jnp.where(HIDDEN, 0, params["b"]))
    error = np.linalg.norm(off) / np.linalg.norm(size)
    np.testing.assert_allclose(pruned.report.sites[0].error, error, rtol=1e-4)
    assert 0.25 < error <= 0.3 + 1e-3


@slow
def test_a_budget_of_a_network_with_infinite_logits():
    def apply_fn(params, x):
        return attention(params, x, CAUSAL, LOGITS["where"])

    report = nt.prune(PARAMS, apply_fn, X, method=nt.NetTrim(deviation=0.2)).report
    assert float(report.checked) <= 0.2
    assert int(report.nonzeros) < report.size


@pytest.mark.parametrize("last", ["where", "add"])
@pytest.mark.parametrize("mode", only_fast(["parallel"], ["parallel", "cascade"]))
def test_a_bound_with_infinite_logits(last, mode):
    params = {name: PARAMS[name] for name in "qk"}

    def apply_fn(params, x):
        return LOGITS[last](jax.nn.relu(x @ params["q"]) @ params["k"])

    settings = {"method": nt.Magnitude(nt.Sparsity(0.1)), "mode": mode, "bound": True}
    report = nt.prune(params, apply_fn, X, **settings).report
    moved, bound, tight = report.deviation, report.bound, report.tight_bound
    assert 0 < float(moved) <= float(tight) <= float(bound) < 10 * float(moved)


@slow
def test_under_jit():
    """Values that are not known are not looked at."""

    @jax.jit
    def prune(params, batch):
        apply_fn = lambda p, b: attention(p, b[0], b[1], LOGITS["add"])  # noqa: E731
        settings = {"method": METHODS["magnitude"], "on_failure": "keep"}
        return nt.prune(params, apply_fn, batch, **settings)

    pruned = prune(PARAMS, (X, CAUSAL))
    same(pruned, reference("magnitude", "parallel"))
    assert np.isfinite(pruned.report.deviation)


@slow
def test_refit():
    wanted = reference("magnitude", "parallel")
    params, mask = {**PARAMS, "mask": CAUSAL}, {**wanted.mask, "mask": CAUSAL < 1}
    fitted = nt.refit(params, mask, lambda p, x: attention(p, x, p["mask"]), X)
    assert float(fitted.report.deviation) < float(wanted.report.deviation)


def test_the_normal_form():
    params = {"w": models.normal(D, D), "b": models.normal(D), "mask": VOCABULARY}

    def apply_fn(params, x):
        return plus(plus(x @ params["w"], params["b"]), params["mask"])

    normal, scale = nt.link_normalize(params, apply_fn, X[0])
    np.testing.assert_array_equal(normal["mask"], VOCABULARY)
    np.testing.assert_allclose(
        scale * apply_fn(normal, X[0]), apply_fn(params, X[0]), rtol=1e-4, atol=1e-5
    )
    params = {**params, "w": params["w"].at[1, 2].set(jnp.inf)}
    with pytest.raises(ParamsError, match="1 of 64 values of w are NaN or infinite"):
        nt.link_normalize(params, apply_fn, X[0])


# ---- those that reach a layer


def two(params, batch):
    x, mask = batch
    return plus(jax.nn.relu(x @ params["q"]), mask) @ params["k"]


def prune_two(params=PARAMS, mask=VOCABULARY, **settings):
    settings = {"method": METHODS["magnitude"]} | settings
    params = {name: params[name] for name in "qk"}
    return nt.prune(params, two, (X, mask), **settings)


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
def test_an_infinity_that_reaches_a_layer(mode):
    match = (
        "batch: 2 of 8 values of 1 are NaN or infinite; expected finite numbers where "
        "they reach a layer, as they do the inputs of k"
    )
    with pytest.raises(BatchError, match=match):
        prune_two(mode=mode)
    # the layer that they reach is not pruned
    with pytest.warns(UserWarning, match="outputs on this batch hold NaN"):
        pruned = prune_two(mode=mode, exclude="k")
    assert int(pruned.report.nonzeros) == D * D / 2


def test_an_infinity_in_one_of_many_batches():
    bad = X.at[3, 2, 1].set(jnp.inf)
    apply_fn = lambda p, x: attention(p, x, 0)  # noqa: E731
    match = "batch 2: 1 of 1920 values of the array .* reach .* inputs of q"
    with pytest.raises(BatchError, match=match):
        stream = iter([X, X, bad, X])
        nt.prune(PARAMS, apply_fn, stream, method=METHODS["magnitude"])


def test_an_infinite_weight():
    params = {**PARAMS, "q": PARAMS["q"].at[0, 0].set(-jnp.inf)}
    with pytest.raises(ParamsError, match="params: 1 of 64 values of q are NaN or inf"):
        prune_two(params, mask=np.zeros(D, np.float32))
    # a ReLU hides it where it is below zero, but not where it is above
    match = "values of q .* where they reach a layer, as they do the inputs of k"
    with pytest.raises(ParamsError, match=match):
        prune_two(params, mask=np.zeros(D, np.float32), exclude="q")


@slow
@pytest.mark.parametrize("bias", ["free", "fixed"])
def test_an_infinite_bias(bias):
    """It switches units off, and is refused if it is to move."""
    params = {"w": models.normal(D, D), "b": VOCABULARY, "v": models.normal(D, D)}
    x = models.data(100, D)

    def apply_fn(params, x):
        return jax.nn.relu(plus(x @ params["w"], params["b"])) @ params["v"]

    method = nt.Reconstruct(nt.Sparsity(0.5), bias=bias)
    if bias == "free":
        with pytest.raises(ParamsError, match="2 of 8 values of b are NaN or infinite"):
            nt.prune(params, apply_fn, x, method=method)
        return
    pruned = nt.prune(params, apply_fn, x, method=method)
    np.testing.assert_array_equal(pruned.params["b"], VOCABULARY)
    assert int(pruned.report.nonzeros) == D * D
    assert np.isfinite(float(pruned.report.deviation))


@slow
def test_infinities_of_rows_that_do_not_count():
    bad = X.at[-4:].set(jnp.inf)
    weights = jnp.ones(40).at[-4:].set(0)
    apply_fn = lambda p, x: x @ p["q"]  # noqa: E731
    settings = {"method": METHODS["magnitude"]}
    with pytest.warns(UserWarning, match="outputs on this batch hold NaN"):
        pruned = nt.prune(
            {"q": PARAMS["q"]}, apply_fn, bad, weights=weights, **settings
        )
    wanted = nt.prune({"q": PARAMS["q"]}, apply_fn, X[:-4], **settings)
    np.testing.assert_array_equal(pruned.params["q"], wanted.params["q"])
    with pytest.raises(BatchError, match="reach a layer"):
        nt.prune({"q": PARAMS["q"]}, apply_fn, bad, **settings)


@pytest.mark.parametrize("where", ["buffer", "batch"])
def test_what_is_not_a_number_is_refused_everywhere(where):
    mask = np.where(SEEN, 0, np.nan).astype(np.float32)
    error, text = {"buffer": (ParamsError, "mask"), "batch": (BatchError, "1")}[where]
    match = f"15 of 36 values of {text} are NaN or infinite"
    with pytest.raises(error, match=match):
        if where == "buffer":
            params = {**PARAMS, "mask": mask}
            nt.prune(params, lambda p, x: attention(p, x, p["mask"]), X)
        else:
            nt.prune(PARAMS, lambda p, b: attention(p, *b), (X, mask))
