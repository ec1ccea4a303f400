"""Rows of weight zero never matter, wherever a network takes its axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.calibration.padding import row_weights
from nettrim_jax.results import BatchError
from nettrim_jax.tracing.sites import trace

B, T, D = 6, 5, 8
LENGTHS = np.array([5, 3, 4, 1, 2, 5])
REAL = np.arange(T)[None, :] < LENGTHS[:, None]  # [B, T]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, D)).astype(np.float32)
JUNK = np.where(REAL[:, :, None], X, 50 + X[::-1]).astype(np.float32)
PARAMS = {
    name: RNG.normal(size=(D, D)).astype(np.float32) / 3 for name in ("w", "u", "v")
}
PARAMS["k"] = RNG.normal(size=(3, D, D)).astype(np.float32) / 5
ON = jnp.asarray(REAL[:, :, None].astype(np.float32))


def masked(x):
    """Positions of weight zero may not reach the others."""
    return jnp.where(ON > 0, x, 0)


def batch_major(p, x):
    return jax.nn.relu(x @ p["w"]) @ p["v"]


def merged(p, x):
    return jax.nn.relu(x.reshape(B * T, D) @ p["w"]).reshape(B, T, D) @ p["v"]


def time_major(p, x):
    h = x.transpose(1, 0, 2).reshape(T * B, D) @ p["w"]
    return jax.nn.relu(h).reshape(T, B, D) @ p["v"]


def recurrent(p, x):
    def step(h, now):
        h = jnp.tanh(now @ p["w"] + h @ p["u"])
        return h, h

    _, h = jax.lax.scan(step, jnp.zeros((B, D), x.dtype), x.swapaxes(0, 1))
    return h @ p["v"]


def backwards(p, x):
    def step(h, now):
        h = jnp.tanh(now @ p["w"] + h @ p["u"])
        return h, h

    x = masked(x).swapaxes(0, 1)
    start = jnp.zeros((B, D), x.dtype)
    _, one = jax.lax.scan(step, start, x, reverse=True)
    _, two = jax.lax.scan(step, start, x[::-1])
    return (one + two[::-1]) @ p["v"]


def unrolled(p, x):
    out = [jnp.tanh(x[:, k] @ p["w"]) for k in range(T)]
    return jnp.stack(out, 1) @ p["v"]


def mapped(p, x):
    return jax.vmap(lambda row: jax.nn.relu(row @ p["w"]) @ p["v"])(x)


def mapped_over_time(p, x):
    def one(row):
        return jax.nn.relu(row @ p["w"]) @ p["v"]

    return jax.vmap(jax.vmap(one), in_axes=1, out_axes=1)(x)


def in_turns(p, x):
    return jax.lax.map(lambda row: jax.nn.relu(row @ p["w"]) @ p["v"], x)


def attention(p, x):
    q = (x @ p["w"]).reshape(B, T, 2, D // 2)
    k = (x @ p["u"]).reshape(B, T, 2, D // 2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
    scores = jnp.where(jnp.asarray(REAL)[:, None, None, :], scores, -1e9)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), masked_heads(x))
    return mixed.reshape(B, T, D) @ p["v"] + x


def masked_heads(x):
    return masked(x).reshape(B, T, 2, D // 2)


def stacked(p, x):
    def step(h, w):
        return jnp.tanh(h @ w), None

    return jax.lax.scan(step, x, p["k"][:2])[0] @ p["v"]


def convolution(p, x):
    return jax.lax.conv_general_dilated(
        masked(x), p["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )


def with_a_token(p, x):
    token = jnp.broadcast_to(p["u"][:1, None, :], (B, 1, D))
    h = jnp.concatenate([token, x], axis=1)
    return (jax.nn.relu(h @ p["w"]) @ p["v"])[:, 1:]


def shifted(p, x):
    before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return jax.nn.relu(x @ p["w"]) + before @ p["v"]


def pooled(p, x):
    h = jax.nn.relu(x @ p["w"])
    mean = jnp.sum(h * ON, axis=1) / jnp.sum(ON, axis=1)
    return mean @ p["v"]


NETS = {
    f.__name__: f
    for f in (
        *(batch_major, merged, time_major, recurrent, backwards, unrolled, mapped),
        *(mapped_over_time, in_turns, attention, stacked, convolution),
        *(with_a_token, shifted, pooled),
    )
}
METHODS = {
    "wanda": nt.Wanda(nt.Sparsity(0.5)),
    "sparsity": nt.Sparsity(0.5),
    "nettrim": nt.NetTrim(epsilon=0.2),
}


def pruned(name, batch, method="wanda", **settings):
    return nt.prune(
        *(PARAMS, NETS[name], batch),
        method=METHODS[method],
        weights=REAL.astype(np.float32),
        on_failure="keep",
        **settings,
    )


@pytest.mark.parametrize("name", NETS)
def test_the_rows_that_count_are_those_of_weight_one(name):
    """Against the values themselves: which rows of a layer are of real positions."""
    marks = np.where(REAL, 1.0 + np.arange(B * T).reshape(B, T), -1)
    batch = np.broadcast_to(marks[:, :, None], (B, T, D)).astype(np.float32)
    network = trace(NETS[name], PARAMS, batch)
    weights = row_weights(network, jnp.asarray(REAL, jnp.float32))
    for k, site in enumerate(network.sites):
        count = 0
        for turn, use in enumerate(site.uses):
            steps = list(np.ndindex(*use.loops))
            for step in steps:
                rows = weights.rows(k, turn, tuple(step))
                assert rows.shape == (use.folding.rows,)
                count += int((rows > 0).sum())
        twice = site.path == "k" and name == "stacked"
        twice |= site.path != "v" and name == "backwards"
        wanted = REAL.sum() * (2 if twice else 1)
        if name == "pooled" and site.path == "v":
            wanted = B
        if name == "with_a_token":
            wanted += B  # the token is of every sample
        if name == "shifted" and site.path == "v":
            wanted = (np.arange(T)[None, :] <= LENGTHS[:, None]).sum()
        assert count == wanted, site.path


CASES = [(name, mode) for name in NETS for mode in ("parallel", "cascade")]
# every other network in one mode, the modes in turn
QUICK = [case for k, case in enumerate(CASES) if k % 8 == 5]


@pytest.mark.parametrize("case", only_fast(QUICK, CASES), ids="-".join)
def test_what_is_padded_with_does_not_matter(case):
    name, mode = case
    if name == "shifted":  # one position sees what follows the last one
        return
    one, two = pruned(name, X, mode=mode), pruned(name, JUNK, mode=mode)
    for leaf in PARAMS:
        np.testing.assert_array_equal(one.mask[leaf], two.mask[leaf])
        np.testing.assert_array_equal(one.params[leaf], two.params[leaf])
    assert one.report.deviation == two.report.deviation


@pytest.mark.parametrize("name", ["batch_major", "time_major", "recurrent", "pooled"])
def test_outputs_of_weight_zero_do_not_count(name):
    network = trace(NETS[name], PARAMS, X)
    weights = row_weights(network, jnp.asarray(REAL, jnp.float32))
    out = NETS[name](PARAMS, jnp.asarray(X))
    [counts] = weights.counted([jnp.ones_like(out)])
    of_samples = np.ones((B, D)) if out.ndim == 2 else REAL[:, :, None] * np.ones(D)
    backwards = name in ("time_major", "recurrent") and out.shape[0] == T
    wanted = of_samples.swapaxes(0, 1) if backwards else of_samples
    np.testing.assert_array_equal(counts, wanted)


@pytest.mark.parametrize("weights", ["array", "function"])
def test_a_budget_does_not_look_at_padding(weights):
    real = np.tile(REAL, (8, 1)).astype(np.float32)
    batches = [
        {
            "x": np.where(real[:, :, None] > 0, np.tile(X, (8, 1, 1)), other),
            "mask": real,
        }
        for other in (np.float32(0), np.float32(9))
    ]
    given = real if weights == "array" else lambda batch: batch["mask"]
    method = nt.Wanda(nt.Sparsity(), deviation=0.3)
    one, two = (
        nt.prune(
            *(PARAMS, lambda p, batch: batch_major(p, batch["x"]), batch),
            method=method,
            weights=given,
        )
        for batch in batches
    )
    for leaf in PARAMS:
        np.testing.assert_array_equal(one.mask[leaf], two.mask[leaf])
    assert one.report.checked == two.report.checked
    assert one.report.deviation == two.report.deviation


@pytest.mark.parametrize(
    "name, method",
    [
        ("recurrent", "sparsity"),  # valid outputs feed those of padding
        pytest.param("time_major", "sparsity", marks=slow),
        pytest.param("pooled", "sparsity", marks=slow),
        pytest.param("time_major", "nettrim", marks=slow),
        pytest.param("pooled", "nettrim", marks=slow),
    ],
)
def test_it_does_not_matter_to_solvers_either(name, method):
    one, two = pruned(name, X, method), pruned(name, JUNK, method)
    for leaf in PARAMS:
        np.testing.assert_array_equal(one.params[leaf], two.params[leaf])


def test_merged_batches_have_merged_weights():
    """The batch itself has one axis of all positions."""
    flat = {"one": X.reshape(B * T, D), "two": JUNK.reshape(B * T, D)}
    answers = [
        nt.prune(
            *(PARAMS, lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"], x),
            method=METHODS["wanda"],
            weights=REAL.astype(np.float32),
        )
        for x in flat.values()
    ]
    for leaf in PARAMS:
        np.testing.assert_array_equal(*(a.params[leaf] for a in answers))


def sorted_by_time(p, x):
    return jnp.sort(x, axis=1) @ p["w"]


def in_pairs(p, x):
    return x[:, : T - 1].reshape(B, 2, 2, D).swapaxes(1, 2) @ p["w"]


def unrolled_state(p, x):
    h, out = jnp.zeros((B, D), x.dtype), []
    for k in range(T):
        h = jnp.tanh(x[:, k] + h)
        out.append(h)
    return jnp.stack(out, 1) @ p["w"]


def looked_up(p, x):
    order = jnp.asarray([3, 1, 0, 2, 4])
    return x[:, order] @ p["w"]


@pytest.mark.parametrize(
    "apply_fn, why",
    [
        (sorted_by_time, "`sort` moves"),
        (in_pairs, "a `reshape` splits"),
        (looked_up, "a `gather` looks up"),
        (unrolled_state, "a `concatenate` joins"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(apply_fn, why):
    params = {"w": PARAMS["w"], "v": PARAMS["v"]}
    weights = REAL.astype(np.float32)
    match = f"weights: which rows of w they mean cannot be followed: {why}.*exclude="
    with pytest.raises(BatchError, match=match):
        nt.prune(params, apply_fn, X, method=METHODS["wanda"], weights=weights)

    def both(p, x):
        return x @ p["v"] + jnp.mean(apply_fn(p, x)) * 0

    left = {"method": METHODS["wanda"], "weights": weights, "exclude": "w"}
    nt.prune(params, both, X, **left)  # the others are no reason


@pytest.mark.parametrize("shape", [(T, B), (B, T, D + 1), (B, 2), (1,), (B * D,)])
def test_weights_of_other_axes_are_refused(shape):
    with pytest.raises(BatchError, match="is no prefix of the rows"):
        nt.prune(PARAMS, batch_major, X, weights=np.ones(shape, np.float32))
