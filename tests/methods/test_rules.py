"""The literature's rules against their definitions, alone and through ``prune``."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from marks import only_fast, slow
from problems import data_file, inputs
from scipy import stats

import nettrim_jax as nt
from nettrim_jax.methods.base import held_out
from nettrim_jax.results import DIRECT, BatchError, MethodError, SolveError

RULES = [
    nt.Magnitude(nt.Sparsity(0.6)),
    nt.Magnitude(nt.Neurons(0.5)),
    nt.Wanda(nt.Sparsity(0.6, scope="column")),
    nt.Wanda(nt.Inputs(0.5)),
    nt.SparseGPT(nt.Sparsity(0.6)),
    nt.SparseGPT(nt.NM(2, 4, pad=True)),
    nt.Random(nt.Sparsity(0.6)),
    nt.Random(nt.NM(2, 4, pad=True), seed=3),
    nt.LayerOBS(nt.Sparsity(0.6)),
    nt.LayerOBS(nt.NM(2, 4, pad=True)),
    nt.LayerOBS(nt.Blocks(0.5, (2, 2), pad=True)),
]
MARKED = only_fast([RULES[5]], RULES)


def layer(d_in=12, d_out=5, n=40, lanes=2, kind="correlated", seed=0):
    """Weights and inputs of some lanes."""
    rng = np.random.default_rng(seed)
    X = np.stack([inputs(kind, n, d_in, rng) for _ in range(lanes)])
    return rng.normal(size=(lanes, d_in, d_out)), X


def gram(X):
    return np.einsum("bni,bnj->bij", X, X)


def answer(rule, W, X):
    return np.asarray(jax.jit(rule.answer)(W, gram(X)))


def test_magnitude_and_wanda_keep_the_best_by_their_scores():
    W, X = layer()
    sizes = np.linalg.norm(X, axis=1)[:, :, None]
    for rule, score in (
        (nt.Magnitude(nt.Sparsity(0.5)), np.abs(W)),
        (nt.Wanda(nt.Sparsity(0.5)), np.abs(W) * sizes),
    ):
        new = answer(rule, W, X)
        kept = new != 0
        np.testing.assert_array_equal(new[kept], W[kept])
        assert score[kept].min() > score[~kept].max()
        assert kept.sum() == W.size // 2


def test_a_random_choice_is_any_choice():
    """All six of two weights out of four, each as often as chance has it."""
    W = jnp.asarray([[[1.0, 2.0], [3.0, 4.0]]])

    def drawn(scope):
        counts = collections.Counter()
        for seed in range(300):
            rule = nt.Random(nt.Sparsity(0.5, scope=scope), seed=seed)
            new = np.asarray(rule.answer(W, None))
            assert (new[new != 0] == np.asarray(W)[new != 0]).all()
            counts[tuple((new != 0).ravel().tolist())] += 1
        return counts

    for scope, choices in (("layer", 6), ("column", 4)):
        counts = np.array(list(drawn(scope).values()))
        assert len(counts) == choices
        expected = 300 / choices
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert statistic < stats.chi2.isf(1e-4, choices - 1)


@slow
def test_a_seed_draws_one_choice_and_layers_draw_apart():
    W, _ = layer(d_in=24, d_out=20)
    rule = nt.Random(nt.Sparsity(0.5), seed=7)
    one, again, jitted = (
        np.asarray(f(jnp.asarray(W), None))
        for f in (rule.answer, rule.answer, jax.jit(rule.answer))
    )
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(one, jitted)
    other = np.asarray(rule.answer(jnp.asarray(W + 0.1), None))
    seeded = np.asarray(nt.Random(rule.pattern, seed=8).answer(jnp.asarray(W), None))
    for new in (other, seeded):  # half of the places agree by chance
        assert 0.3 < ((new != 0) == (one != 0)).mean() < 0.7


def obs(w, H, gone):
    """Optimal brain surgeon, input by input, by a solve for every removal."""
    w = w.copy()
    for i in np.flatnonzero(gone):
        rest = np.arange(i, len(w))
        inverse = np.linalg.inv(H[np.ix_(rest, rest)])
        w[rest] -= w[i] * inverse[:, 0] / inverse[0, 0]
        w[i] = 0
    return w


@pytest.mark.parametrize("block", only_fast([5], [1, 5, 128]))
@pytest.mark.parametrize("pattern", [nt.Sparsity(0.6), nt.NM(2, 4)])
def test_sparsegpt_is_sequential_optimal_brain_surgery(pattern, block):
    W, X = layer()
    rule = nt.SparseGPT(pattern, damping=0.02, block=block)
    new = answer(rule, W, X)
    for lane, unit in itertools.product(range(2), range(5)):
        G = gram(X)[lane]
        H = G + 0.02 * np.mean(np.diag(G)) * np.eye(len(G))
        want = obs(W[lane, :, unit], H, new[lane, :, unit] == 0)
        np.testing.assert_allclose(new[lane, :, unit], want, atol=1e-9)


def test_one_removal_is_the_least_squares_of_the_others():
    W, X = layer(lanes=1, d_out=1)
    W[0, 0] = 1e-4  # so that it is the first that goes
    rule = nt.SparseGPT(nt.NM(11, 12), damping=0.0)
    new = answer(rule, W, X)[0, :, 0]
    want, *_ = np.linalg.lstsq(X[0][:, 1:], X[0] @ W[0, :, 0])
    assert new[0] == 0
    np.testing.assert_allclose(new[1:], want, atol=1e-9)
    # and what it costs is what its score says
    cost = np.sum((X[0] @ (new - W[0, :, 0])) ** 2)
    inverse = np.linalg.inv(gram(X)[0])
    assert cost == pytest.approx(W[0, 0, 0] ** 2 / inverse[0, 0])


def test_weights_of_a_block_go_by_least_cost():
    W, X = layer(lanes=1, d_out=1)
    new = answer(nt.SparseGPT(nt.Sparsity(1 / 12), damping=0.0), W, X)[0, :, 0]
    costs = []
    for i in range(12):  # what is before an input no longer adapts
        rest = np.linalg.inv(gram(X)[0][i:, i:])
        costs.append(W[0, i, 0] ** 2 / rest[0, 0])
    assert np.flatnonzero(new == 0).tolist() == [np.argmin(costs)]


@pytest.mark.parametrize(
    "kind", only_fast(["correlated"], ["white", "correlated", "nonnegative"])
)
def test_sparsegpt_errs_less_than_what_leaves_the_rest_as_it_is(kind):
    W, X = layer(d_in=40, d_out=30, n=200, kind=kind, seed=3)
    if kind != "nonnegative":  # these have scales already
        X = X * np.exp(np.random.default_rng(1).normal(size=40))
    pattern = nt.Sparsity(0.5)
    errors = [
        np.linalg.norm(X @ (answer(rule(pattern), W, X) - W))
        for rule in (nt.SparseGPT, nt.Wanda, nt.Magnitude)
    ]
    assert errors[0] < min(errors[1:])
    if kind == "white":  # then Wanda's score is what a removal costs
        assert errors[1] < errors[2]


def test_inputs_that_are_zero_get_no_weight():
    W, X = layer(kind="zero_columns")
    dead = ~X.any(axis=1)
    assert dead.any()
    new = answer(nt.SparseGPT(nt.Sparsity(0.3)), W, X)
    assert np.isfinite(new).all() and not new[dead].any()


# ---- through prune


@pytest.mark.parametrize("mode", only_fast(["parallel"], ["parallel", "cascade"]))
@pytest.mark.parametrize("rule", MARKED, ids=repr)
def test_prune_gives_the_rules_answer(rule, mode):
    """The first layer's, on all rows but those held out, whatever the batches."""
    model = models.get("square")
    x, W = np.asarray(model.batch, float), np.asarray(model.params["0"]["w"], float)
    parts = np.split(np.asarray(model.batch), [5, 22, 23])
    for batch in (model.batch, iter(parts)):
        pruned = nt.prune(
            model.params, model.apply_fn, batch, method=rule, mode=mode, held_out=0.0
        )
        want = answer(rule, W[None], x[None])[0]
        np.testing.assert_allclose(pruned.params["0"]["w"], want, atol=1e-4)
        for site in pruned.report.sites:
            assert int(site.result) == DIRECT
            assert np.isnan(float(site.gap)) and np.isfinite(float(site.error))
        assert "direct" not in str(pruned.report)
        for i in range(3):
            new, old = pruned.params[f"{i}"]["b"], model.params[f"{i}"]["b"]
            np.testing.assert_array_equal(new, old)


@slow
def test_held_out_rows_have_no_part_in_the_moments():
    model = models.get("square")
    w = model.params["0"]["w"]

    def apply_fn(w, x):
        return x @ w

    rule, n = nt.SparseGPT(nt.Sparsity(0.5)), len(model.batch)
    seen, _ = held_out(n, round(0.25 * n))
    # rows come in random order; those that a solver sees are known by their effect
    errors = []
    for key in range(8):
        prune = functools.partial(
            nt.prune, w, apply_fn, model.batch, method=rule, key=key
        )
        part, full = (prune(held_out=share).report.sites[0] for share in (0.25, 0.0))
        assert part.shape[1] == n - len(seen)
        errors.append([float(a) for a in (part.error, full.error, part.held_out_error)])
    fit, every, out = np.mean(errors, axis=0)
    assert fit < every < out


@pytest.mark.parametrize(
    "name",
    only_fast(
        ["siamese"], "siamese grouped scan-of-layers ragged-experts bfloat16".split()
    ),
)
def test_layers_of_every_kind(name):
    model = models.get(name)
    method = nt.SparseGPT(nt.Sparsity(0.5))
    report = nt.prune(model.params, model.apply_fn, model.batch, method=method).report
    for site in report.sites:
        assert int(site.result) == DIRECT
        # inputs that are never on lose all their weights, beyond what is asked
        assert int(site.nonzeros) <= site.size - round(0.5 * site.size)
        assert 0 < float(site.error) < 0.8


@slow
def test_steps_of_a_loop_are_layers_apart():
    """A network in a loop is pruned as the same one written out."""
    W = models.normal(2, 8, 8) * jnp.asarray([1, 0.01], "float32")[:, None, None]

    def looped(W, x):
        return jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, W)[0]

    def flat(W, x):
        return jax.nn.relu(jax.nn.relu(x @ W[0]) @ W[1])

    x = models.data(100, 8)
    for rule in RULES[1::2]:
        loop, out = (
            nt.prune(W, apply_fn, x, method=rule, held_out=0.0).params
            for apply_fn in (looped, flat)
        )
        np.testing.assert_allclose(loop, out, atol=1e-5)


@slow
def test_a_weight_that_a_loop_shares_has_the_moments_of_all_steps():
    w, x = models.normal(8, 8), models.data(50, 8)

    def looped(w, x):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, 3)[0]

    rule, seen = nt.SparseGPT(nt.Sparsity(0.5)), [x]
    for _ in range(2):
        seen.append(jnp.tanh(jnp.matmul(seen[-1], w, precision="highest")))
    got = nt.prune(w, looped, x, method=rule, held_out=0.0).params
    every = np.concatenate(seen).astype(float)
    want = answer(rule, np.asarray(w, float)[None], every[None])[0]
    np.testing.assert_allclose(got, want, atol=1e-4)


@slow
def test_what_no_row_reaches_stays_as_it_is():
    params = {"a": models.normal(8, 8), "b": models.normal(8, 8, seed=1)}

    def apply_fn(p, x):
        return jax.lax.cond(
            jnp.mean(x) > 10, lambda x: x @ p["a"], lambda x: x @ p["b"], x
        )

    experts, x = models.normal(3, 8, 6), models.data(50, 8)

    def routed(W, x):
        return jax.lax.ragged_dot(x, W, jnp.array([30, 20, 0], "int32"))

    for rule in RULES[3:5]:
        new = nt.prune(params, apply_fn, x, method=rule).params
        np.testing.assert_array_equal(new["a"], params["a"])
        assert not np.array_equal(new["b"], params["b"])
        new = nt.prune(experts, routed, x, method=rule).params
        np.testing.assert_array_equal(new[2], experts[2])


def test_padding_has_no_part_in_the_moments():
    model, rule = models.get("square"), nt.SparseGPT(nt.Sparsity(0.5))
    x = jnp.concatenate([model.batch, 100 * models.data(9, 8, seed=5)])
    weights = jnp.arange(len(x)) < len(model.batch)
    settings = {"method": rule, "held_out": 0.0}
    padded = nt.prune(model.params, model.apply_fn, x, weights=weights, **settings)
    plain = nt.prune(model.params, model.apply_fn, model.batch, **settings)
    for one, two in zip(
        jax.tree.leaves(padded.params), jax.tree.leaves(plain.params), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-4)


@slow
def test_not_a_number_is_no_success():
    W, x = models.normal(8, 8), models.data(50, 8)

    def overflows(w, x):
        return (x * 1e38) @ w * 1e5

    for rule in RULES:
        with pytest.raises(SolveError, match="1 of 1 layers met what is not a number"):
            nt.prune(W, overflows, x, method=rule)
        kept = nt.prune(W, overflows, x, method=rule, on_failure="keep").params
        np.testing.assert_array_equal(kept, W)
    twice = jnp.concatenate([x, x], axis=1)
    bare = nt.SparseGPT(nt.Sparsity(0.5), damping=0.0)
    with pytest.raises(SolveError, match="of SparseGPT. the inputs"):
        nt.prune(models.normal(16, 4), lambda w, x: x @ w, twice, method=bare)


def test_nm_is_along_the_channels_of_a_convolution():
    w, x = models.normal(3, 3, 8, 5), models.data(4, 6, 6, 8)

    def apply_fn(w, x):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    new = np.asarray(nt.prune(w, apply_fn, x, method=nt.Wanda(nt.NM(2, 4))).params)
    counts = (new.reshape(3, 3, 2, 4, 5) != 0).sum(axis=3)
    assert (counts == 2).all()


def test_moments_are_sums_over_every_row_of_a_stream():
    """As many as fit are kept for the report; the moments are of all."""
    model = models.get("square")
    rule = nt.SparseGPT(nt.Sparsity(0.6))
    settings = {"method": rule, "held_out": 0.0}
    few, all_rows = (
        nt.prune(model.params, model.apply_fn, model.batch, rows=rows, **settings)
        for rows in (16, 10**6)
    )
    for one, two in zip(
        jax.tree.leaves(few.params), jax.tree.leaves(all_rows.params), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert few.report.sites[0].shape[1] == 16


def test_rules_and_programs_side_by_side():
    model = models.get("square")
    method = {"0": nt.Wanda(nt.NM(2, 4)), ".*": nt.NetTrim(epsilon=0.2)}
    sites = nt.prune(
        model.params, model.apply_fn, model.batch, method=method
    ).report.sites
    assert [int(site.result) for site in sites] == [DIRECT, 0, 0]
    assert int(sites[0].nonzeros) == sites[0].size // 2


def test_prune_by_a_rule_under_jit():
    model = models.get("square")
    rule = nt.Wanda(nt.Sparsity(0.5))

    def prune(params):
        return nt.prune(params, model.apply_fn, model.batch, method=rule).params

    for one, two in zip(
        jax.tree.leaves(jax.jit(prune)(model.params)),
        jax.tree.leaves(prune(model.params)),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(
    "method, says",
    [
        (0.9, "expected a method such as.*a pattern such as Sparsity.*got 0.9"),
        (nt.NM(2, 3), "0/w: NM.*3 does not divide the 8 inputs"),
        (nt.Wanda(nt.NM(2, 3)), "0/w: NM.*3 does not divide the 8 inputs"),
    ],
)
def test_refusals_of_prune(method, says):
    model = models.get("square")
    with pytest.raises(MethodError, match=says):
        nt.prune(model.params, model.apply_fn, model.batch, method=method)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: nt.Wanda(0.9), "expected a pattern"),
        (lambda: nt.SparseGPT(nt.Neurons(0.5)), "expected Sparsity or NM"),
        (lambda: nt.SparseGPT(nt.NM(2, 4), damping=-1), "damping=-1"),
        (lambda: nt.SparseGPT(nt.NM(2, 4), block=0), "block=0"),
        (lambda: nt.SparseGPT(nt.NM(2, 4), block=2.5), "block=2.5.*an integer"),
        (lambda: nt.SparseGPT(nt.NM(2, 4), damping="x"), "damping='x'"),
        (lambda: nt.SparseGPT(nt.NM(2, 4), damping=np.inf), "damping=inf"),
        (lambda: nt.Random(nt.NM(2, 4), seed=1.0), "seed=1.0.*an integer"),
        (lambda: nt.Random(nt.NM(2, 4), seed=-1), "seed=-1"),
    ],
)
def test_refusals(make, says):
    with pytest.raises(MethodError, match=says):
        make()


def test_padding_behind_a_router_cannot_be_told():
    model = models.get("ragged-experts")
    weights = np.ones(len(model.batch))
    with pytest.raises(BatchError, match="ragged_dot are sorted by group"):
        nt.prune(model.params, model.apply_fn, model.batch, weights=weights)


# ---- the official codes on real layers (their errors after the ReLU, on test images)

OFFICIAL = {
    nt.Magnitude(nt.Sparsity(0.5)): (0.1642, 0.1635),
    nt.Magnitude(nt.Sparsity(0.9)): (0.7007, 0.7249),
    nt.Magnitude(nt.NM(2, 4)): (0.2522, 0.2530),
    nt.Wanda(nt.Sparsity(0.5, scope="column")): (0.0323, 0.1260),
    nt.Wanda(nt.Sparsity(0.9, scope="column")): (0.4350, 0.5903),
    nt.Wanda(nt.NM(2, 4)): (0.2417, 0.1919),
    nt.SparseGPT(nt.Sparsity(0.5)): (0.0339, 0.0500),
    nt.SparseGPT(nt.Sparsity(0.9)): (0.2983, 0.3441),
    nt.SparseGPT(nt.Sparsity(0.95)): (0.4553, 0.5312),
    nt.SparseGPT(nt.NM(2, 4)): (0.0806, 0.0698),
}


@slow
@pytest.mark.parametrize("rule", OFFICIAL, ids=repr)
def test_errors_are_those_of_the_official_codes(rule):
    files = [data_file(name) for name in ("lenet300_mnist.npz", "mnist.npz")]
    if None in files:
        pytest.skip("needs lenet300_mnist.npz and mnist.npz; set NETTRIM_DATA")
    params, mnist = (dict(np.load(file)) for file in files)
    rows = np.random.default_rng(0).permutation(60000)[:4096]
    train, test = (
        jnp.asarray(mnist[name].reshape(-1, 784) / 255, "float32")
        for name in ("x_train", "x_test")
    )
    train = train[rows]
    for i, official in enumerate(OFFICIAL[rule]):
        W, b = (params[f"Dense_{i}/{name}"] for name in ("kernel", "bias"))

        def apply_fn(W, x):
            return jax.nn.relu(x @ W + b[None, :])  # noqa: B023

        new = nt.prune(W, apply_fn, train, method=rule, held_out=0.0).params
        want, got = apply_fn(W, test), apply_fn(new, test)
        error = float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))
        assert error == pytest.approx(official, rel=0.03)
        train, test = apply_fn(W, train), want
