"""Exact budgets: counts, optimality, what a ReLU and held-back rows are worth."""

import itertools

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from exact import choose, reconstruct, seen
from marks import only_fast, slow
from problems import inputs

import nettrim_jax as nt
from nettrim_jax.methods.reconstruct import Reconstruct
from nettrim_jax.results import DIRECT, MethodError, SolveError

PATTERNS = [
    nt.Sparsity(0.7),
    nt.Sparsity(0.7, scope="column"),
    nt.NM(2, 4),
    nt.NM(1, 5, pad=True),
    nt.Blocks(0.6, (3, 2)),
    nt.Neurons(0.5),
    nt.Inputs(0.6),
]


def layer(d_in=12, d_out=6, n=60, lanes=1, kind="correlated", seed=0):
    """What one layer saw: all rows kept, nothing pruned before it."""
    rng = np.random.default_rng(seed)
    X = np.stack([inputs(kind, n, d_in, rng) for _ in range(lanes)])
    return seen(X, rng.normal(size=(lanes, d_in, d_out)))


def error(seen, W, b, relu):
    Z, P = seen.P0 + seen.X @ (W - seen.W0) + b[:, None, :], seen.P
    Z, P = (jnp.maximum(a, 0) if relu else a for a in (Z, P))
    return float(jnp.linalg.norm(Z - P) / jnp.linalg.norm(P))


def least(seen, kept, free):
    """Least squares on a support, unit by unit."""
    X, want = np.asarray(seen.X[0]), np.asarray(seen.P[0])
    W, b = np.zeros(kept.shape[1:]), np.zeros(kept.shape[2])
    still = np.asarray(seen.P0[0] - seen.X[0] @ seen.W0[0])
    for j in range(kept.shape[2]):
        A = X[:, kept[0, :, j]]
        A = np.concatenate([A, np.ones((len(A), 1))], axis=1) if free else A
        w, *_ = np.linalg.lstsq(A, want[:, j] - still[:, j])
        W[kept[0, :, j], j] = w[: kept[0, :, j].sum()]
        b[j] = w[-1] if free else 0
    return W[None], b[None]


@pytest.mark.parametrize("relu", only_fast([True], [True, False]))
@pytest.mark.parametrize("pattern", only_fast(PATTERNS[2:3], PATTERNS), ids=repr)
def test_the_count_is_what_was_asked(pattern, relu):
    for lanes in (1, 3):
        one = layer(lanes=lanes)
        method = Reconstruct(pattern, ridge=0.1, plain=0.3, steps=20)
        W, _ = reconstruct(method, one, relu, True)
        kept = np.asarray(W != 0)
        assert kept.sum() == np.asarray(pattern.keep(one.W0**2)).sum()
        # and it is a choice that the pattern allows
        np.testing.assert_array_equal(pattern.keep(jnp.asarray(kept, float)), kept)


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize(
    "kind", only_fast(["correlated"], ["white", "correlated", "nonnegative"])
)
def test_values_are_the_best_on_their_support(kind, free):
    one = layer(kind=kind)
    method = Reconstruct(nt.Sparsity(0.6), ridge=0.0)
    W, b = reconstruct(method, one, False, free)
    best = error(one, *least(one, np.asarray(W != 0), free), False)
    assert (1 - 1e-9) * best <= error(one, W, b, False) <= 1.02 * best


@slow
def test_no_other_choice_is_much_better():
    """All supports of one unit, by brute force."""
    found = []
    for seed in range(12):
        one = layer(d_in=8, d_out=1, n=40, seed=seed)
        W, b = reconstruct(Reconstruct(nt.Sparsity(5 / 8), ridge=0.0), one, False, True)
        errors = []
        for pick in itertools.combinations(range(8), 3):
            kept = np.zeros((1, 8, 1), bool)
            kept[0, pick, 0] = True
            errors.append(error(one, *least(one, kept, True), False))
        found.append(error(one, W, b, False) / min(errors))
    assert np.median(found) < 1.01 and max(found) < 1.2


HARD = nt.Sparsity(0.85), nt.Sparsity(0.5), nt.NM(2, 4)


# of white inputs what is removed cannot be made up for
@pytest.mark.parametrize(
    "kind", only_fast(["correlated"], ["correlated", "nonnegative"])
)
@pytest.mark.parametrize("relu", only_fast([False], [True, False]))
@pytest.mark.parametrize("pattern", only_fast(HARD[:1], HARD), ids=repr)
def test_it_errs_less_than_the_rules_on_new_rows(pattern, relu, kind):
    rng = np.random.default_rng(0)
    X = inputs(kind, 800, 24, rng)[None]
    W = rng.normal(size=(1, 24, 16))
    one, new = seen(X[:, :400], W), seen(X[:, 400:], W)
    gram = one.moments[:, :-1, :-1]
    ours = error(new, *reconstruct(Reconstruct(pattern), one, relu, True), relu)
    for rule in (nt.SparseGPT, nt.Wanda, nt.Magnitude):
        other = rule(pattern).answer(one.W0, gram)
        assert ours < error(new, other, jnp.zeros((1, 16)), relu)


@slow
def test_a_relu_gives_room():
    one = layer(d_in=24, d_out=16, n=400, kind="nonnegative")
    pattern = nt.Sparsity(0.8)
    errors = [
        error(one, *reconstruct(Reconstruct(pattern, 0.0, plain), one, True, True), 1)
        for plain in (0.0, 0.3, 1.0)
    ]
    assert errors == sorted(errors) and errors[0] < 0.95 * errors[2]
    # all of the plain response is what a layer without a ReLU is asked for
    whole, linear = (
        reconstruct(Reconstruct(pattern, 0.0, 1.0), one, relu, True)[0]
        for relu in (True, False)
    )
    np.testing.assert_allclose(whole, linear, atol=1e-9)


@slow
def test_a_ridge_holds_weights_where_they_were():
    one, away = layer(), []
    for ridge in (0.0, 1.0, 100.0):
        method = Reconstruct(nt.Sparsity(0.6), ridge=ridge)
        W, _ = reconstruct(method, one, False, True)
        away.append(float(jnp.max(jnp.where(W != 0, jnp.abs(W - one.W0), 0))))
    assert away == sorted(away, reverse=True) and away[-1] < 0.1


@slow
@pytest.mark.parametrize("seed", range(4))
def test_few_rows_get_a_ridge_and_many_none(seed):
    rng = np.random.default_rng(seed)
    X = inputs("correlated", 4000, 24, rng)[None]
    W = rng.normal(size=(1, 24, 16))
    method, new = Reconstruct(nt.Sparsity(0.5)), seen(X[:, 3000:], W)
    few, many = (seen(X[:, :n], W) for n in (36, 3000))
    ridges = [float(choose(method, one, True, True)[0]) for one in (few, many)]
    assert ridges[0] >= 0.1 > 0.01 >= ridges[1]
    bold = Reconstruct(method.pattern, ridge=1e-3, plain=0.0)
    tuned, untuned = (
        error(new, *reconstruct(m, few, True, True), True) for m in (method, bold)
    )
    assert tuned < 0.9 * untuned


@slow
def test_pruned_inputs_are_made_up_for():
    """With other inputs than the trained ones the target is the trained answer."""
    one = layer(d_in=12, d_out=6, n=200)
    noise = 0.3 * np.random.default_rng(1).normal(size=one.X.shape)
    X = np.asarray(one.X) + noise
    moved = seen(X, np.asarray(one.W0))
    moved = moved._replace(P=one.P, P0=moved.P)
    for relu in (True, False):
        method = Reconstruct(nt.Sparsity(0.0), ridge=0.0, plain=0.0)
        W, b = reconstruct(method, moved, relu, True)
        assert error(moved, W, b, relu) < error(moved, one.W0, b * 0, relu)
        if not relu:
            best = error(moved, *least(moved, np.ones(W.shape, bool), True), False)
            assert error(moved, W, b, False) <= 1.01 * best


@slow
def test_a_large_mean_of_the_inputs_changes_nothing():
    rng = np.random.default_rng(0)
    X, W = rng.normal(size=(1, 100, 12)), rng.normal(size=(1, 12, 6))
    method, answers = Reconstruct(nt.Sparsity(0.6), ridge=0.01), []
    for mean in (0.0, 1000.0):
        one = jax.tree.map(
            lambda a: a.astype("float32") if a.dtype == float else a,
            seen(X + mean, W, t=-mean * W.sum(1)[:, None, :]),
        )
        answers.append(reconstruct(method, one, False, True)[0])
    np.testing.assert_array_equal(*(np.asarray(W) != 0 for W in answers))
    np.testing.assert_allclose(*answers, atol=1e-2)


@slow
def test_inputs_that_are_always_zero_cost_nothing():
    one = layer(kind="zero_columns", n=100)
    for pattern in PATTERNS[:3]:
        W, b = reconstruct(Reconstruct(pattern), one, True, True)
        assert np.isfinite(W).all() and np.isfinite(b).all()
        assert np.abs(W).max() < 10 * np.abs(one.W0).max()


# ---- through prune


@slow
@pytest.mark.parametrize("mode", only_fast(["parallel"], ["parallel", "cascade"]))
@pytest.mark.parametrize(
    "name",
    only_fast(
        ["grouped"],
        "square siamese grouped scan-of-layers bfloat16 linen-cnn haiku".split(),
    ),
)
def test_layers_of_every_kind(name, mode):
    model = models.get(name)
    pruned = nt.prune(
        model.params, model.apply_fn, model.batch, method=nt.Sparsity(0.5), mode=mode
    )
    for site in pruned.report.sites:
        assert int(site.result) == DIRECT
        # of every step of a loop apart
        assert abs(int(site.nonzeros) - (site.size - round(0.5 * site.size))) <= 8
        assert 0 <= float(site.error) < 0.8
    rule = nt.prune(
        model.params,
        model.apply_fn,
        model.batch,
        method=nt.Magnitude(nt.Sparsity(0.5)),
        mode=mode,
    )
    assert float(pruned.report.deviation) < float(rule.report.deviation)


@slow
def test_where_all_is_kept_every_bit_stays():
    model = models.get("square")
    method = Reconstruct(nt.Sparsity(0.0), ridge=0.1, plain=0.3)
    pruned = nt.prune(model.params, model.apply_fn, model.batch, method=method)
    jax.tree.map(np.testing.assert_array_equal, pruned.params, model.params)


@slow
def test_without_a_relu_rows_beyond_those_kept_count_too():
    """Of a stream as many as fit are kept; the moments are of all."""
    w, x = models.normal(16, 6), models.data(300, 16)
    method = nt.Reconstruct(nt.Sparsity(0.5), ridge=0.01)
    one, two = (
        nt.prune(w, lambda w, x: x @ w, batch, method=method, rows=rows, held_out=0.0)
        for batch, rows in ((x, 1000), (iter(jnp.split(x, 3)), 40))
    )
    np.testing.assert_allclose(one.params, two.params, atol=1e-4)


@slow
def test_padding_has_no_part_in_it():
    model = models.get("square")
    x = jnp.concatenate([model.batch, 100 * models.data(9, 8, seed=5)])
    weights = jnp.arange(len(x)) < len(model.batch)
    settings = {"method": nt.Reconstruct(nt.Sparsity(0.5), 0.01, 0.3), "held_out": 0.0}
    padded = nt.prune(model.params, model.apply_fn, x, weights=weights, **settings)
    plain = nt.prune(model.params, model.apply_fn, model.batch, **settings)
    for one, two in zip(
        jax.tree.leaves(padded.params), jax.tree.leaves(plain.params), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-3)


@slow
def test_a_bias_stays_if_it_is_fixed():
    model = models.get("square")
    for bias, moves in (("free", True), ("fixed", False)):
        method = nt.Reconstruct(nt.Sparsity(0.6), bias=bias)
        new = nt.prune(model.params, model.apply_fn, model.batch, method=method).params
        assert bool((new["0"]["b"] != model.params["0"]["b"]).any()) == moves


@slow
def test_under_jit_and_of_an_ensemble():
    model = models.get("square")

    def prune(params):
        return nt.prune(params, model.apply_fn, model.batch, method=nt.NM(2, 4)).params

    plain = prune(model.params)
    for one, two in zip(
        jax.tree.leaves(jax.jit(prune)(model.params)),
        jax.tree.leaves(plain),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, atol=1e-4)
    both = jax.tree.map(lambda a: jnp.stack([a, a]), model.params)
    for one, two in zip(
        jax.tree.leaves(jax.vmap(prune)(both)), jax.tree.leaves(plain), strict=True
    ):
        np.testing.assert_allclose(one[1], two, atol=1e-4)


@slow
def test_steps_of_a_loop_are_layers_apart():
    W = models.normal(2, 8, 8) * jnp.asarray([1, 0.01], "float32")[:, None, None]

    def looped(W, x):
        return jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, W)[0]

    x = models.data(100, 8)
    new = nt.prune(W, looped, x, method=nt.Sparsity(0.75)).params
    assert ((new != 0).sum((1, 2)) == 16).all()


@slow
def test_not_a_number_is_no_success():
    W, x = models.normal(8, 8), models.data(50, 8)

    def overflows(w, x):
        return (x * 1e38) @ w * 1e5

    with pytest.raises(SolveError, match="1 of 1 layers have .* squares overflow"):
        nt.prune(W, overflows, x, method=nt.Sparsity(0.5))
    kept = nt.prune(W, overflows, x, method=nt.Sparsity(0.5), on_failure="keep")
    np.testing.assert_array_equal(kept.params, W)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: nt.Reconstruct(0.9), "expected a pattern"),
        (lambda: nt.Reconstruct(nt.NM(2, 4), ridge=-1), "ridge=-1.*at least 0"),
        (lambda: nt.Reconstruct(nt.NM(2, 4), ridge=np.inf), "ridge=inf.*finite"),
        (lambda: nt.Reconstruct(nt.NM(2, 4), plain=1.5), r"plain=1.5.*\[0, 1\]"),
        (lambda: nt.Reconstruct(nt.NM(2, 4), plain="x"), "plain='x'"),
        (lambda: nt.Reconstruct(nt.NM(2, 4), bias="penalized"), "bias='penalized'"),
        (lambda: nt.Reconstruct(nt.NM(2, 4), steps=0), "steps=0.*at least 1"),
        (lambda: nt.Reconstruct(nt.NM(2, 4), steps=2.5), "steps=2.5"),
    ],
)
def test_refusals(make, says):
    with pytest.raises(MethodError, match=says):
        make()


@slow
@pytest.mark.parametrize("seed", range(6))
def test_few_rows_beside_the_moments_of_many_do_not_run_away(seed):
    """Where units are mostly off, the rows in hand undo what the moments pull."""
    rng = np.random.default_rng(seed)
    X = inputs("correlated", 4000, 24, rng)[None]
    many = seen(X, rng.normal(size=(1, 24, 16)), t=-3.0)
    few = many._replace(
        **{k: getattr(many, k)[:, :60] for k in ("X", "P", "P0", "valid")}
    )
    errors = []
    for plain in (1.0, 0.0):
        method = Reconstruct(nt.Sparsity(0.6), ridge=1e-3, plain=plain, steps=600)
        W, b = reconstruct(method, few, True, True)
        errors.append(error(many, W, b, relu=True))
    assert errors[1] < 1.1 * errors[0] < 1.1, errors
