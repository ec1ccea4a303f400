"""``prune`` under jit and vmap is ``prune``; and what it compiles, and how often."""

import functools

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax._numerics import for_each
from nettrim_jax.convex import stage
from nettrim_jax.execution import batching
from nettrim_jax.results import CONVERGED, MAX_STEPS

# what the other tests prune too, so that what they compiled serves here
DIMS = (8, 8, 8, 8)
X = models.get("square").batch
METHOD = nt.NetTrim(epsilon=0.2)
prune = functools.partial(nt.prune, apply_fn=models.mlp, batch=X, method=METHOD)

COMPILED = []


def _listen(event, duration, **info):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(info)


jax.monitoring.register_event_duration_secs_listener(_listen)


@pytest.fixture
def compilations():
    """A function that says how many programs XLA compiled since it was called last."""
    COMPILED.clear()

    def count():
        found = len(COMPILED)
        COMPILED.clear()
        return found

    return count


@functools.cache
def plain(seed):
    return prune(models.mlp_params(DIMS, seed))


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def same(one, two, atol=2e-4):
    """The same pruning, up to the rounding of another order of sums."""
    for a, b in zip(
        jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True
    ):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=atol)
    assert jax.tree.structure(one) == jax.tree.structure(two)  # report's names, too
    for a, b in zip(one.report.sites, two.report.sites, strict=True):
        assert int(a.result) == int(b.result) == CONVERGED
        assert abs(int(a.nonzeros) - int(b.nonzeros)) <= 1
        assert float(a.error) == pytest.approx(float(b.error), abs=atol)
        assert float(a.held_out_error) == pytest.approx(
            float(b.held_out_error), abs=10 * atol
        )
    assert float(one.report.deviation) == pytest.approx(
        float(two.report.deviation), abs=10 * atol
    )


def test_jit():
    params = models.mlp_params(DIMS, 0)
    answer = jax.jit(prune)(params)
    same(answer, plain(0))
    for mask, new in zip(
        jax.tree.leaves(answer.mask), jax.tree.leaves(answer.params), strict=True
    ):
        assert mask.dtype == bool
        if new.ndim == 2:
            np.testing.assert_array_equal(mask, new != 0)
    # out of jit the report is as good as any
    assert "0/w" in str(answer.report) and answer.report.to_dict()["size"] == 192


@slow
def test_jit_over_the_batch_and_epsilon():
    @jax.jit
    def call(params, x, epsilon):
        return nt.prune(params, models.mlp, x, method=nt.NetTrim(epsilon=epsilon))

    params = models.mlp_params(DIMS, 0)
    same(call(params, X, jnp.float32(0.2)), plain(0))


@slow
def test_jit_raises_nothing_on_values():
    hasty = nt.ADMM(max_steps=10, tol=1e-6)
    params = models.mlp_params(DIMS, 0)
    answer = jax.jit(lambda p: prune(p, solver=hasty))(params)
    assert [int(s.result) for s in answer.report.sites] == [MAX_STEPS] * 3
    kept = jax.jit(lambda p: prune(p, solver=hasty, on_failure="keep"))(params)
    for a, b in zip(jax.tree.leaves(kept.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


@slow
def test_vmap_over_an_ensemble():
    ensemble = stack([models.mlp_params(DIMS, seed) for seed in (0, 10, 20)])
    answers = jax.vmap(prune)(ensemble)
    for i, seed in enumerate((0, 10, 20)):
        same(jax.tree.map(lambda a: a[i], answers), plain(seed))  # noqa: B023
    # a report with a mapped axis can still be printed
    assert "3 layers" in str(answers.report)
    assert answers.report.sites[0].nonzeros.shape == (3,)


@slow
def test_vmap_over_batches():
    params = models.mlp_params(DIMS, 0)
    xs = jnp.stack([X, models.data(64, 8, seed=5)])
    answers = jax.vmap(lambda x: nt.prune(params, models.mlp, x, method=METHOD))(xs)
    for i in range(2):
        one = jax.tree.map(lambda a: a[i], answers)  # noqa: B023
        same(one, nt.prune(params, models.mlp, xs[i], method=METHOD))


@slow
def test_vmap_over_epsilon_within_jit():
    params = models.mlp_params(DIMS, 0)

    @jax.jit
    @jax.vmap
    def call(epsilon):
        return prune(params, method=nt.NetTrim(epsilon=epsilon))

    answers = call(jnp.asarray([0.1, 0.2, 0.4], jnp.float32))
    same(jax.tree.map(lambda a: a[1], answers), plain(0))
    nonzeros = answers.report.nonzeros
    assert nonzeros[0] > nonzeros[1] > nonzeros[2]


# 6 of 5 x 5, 7 of 5 x 7, 7 of 7 x 5, which no other test has
DEEP = models.mlp_params((*(5,) * 6, *(5, 7) * 7, 5))
prune_deep = functools.partial(
    nt.prune, apply_fn=models.mlp, method=METHOD, on_failure="keep", held_out=0.2
)


@slow
@pytest.mark.parametrize("rows", only_fast([40], [40, 44]))
def test_20_layers_in_3_shapes_compile_the_solver_3_times(monkeypatch, rows):
    traces = []
    first = stage.first

    def counted(program, *rest):
        traces.append((program.X.shape, program.response.Y.shape))
        return first(program, *rest)

    monkeypatch.setattr(stage, "first", counted)
    before = batching._each._cache_size()
    x = models.data(rows, 5)
    if rows == 40:  # traces all there is and compiles nothing
        answer = jax.eval_shape(lambda p, x: prune_deep(p, batch=x), DEEP, x)
    else:
        answer = prune_deep(DEEP, batch=x)
        assert batching._each._cache_size() - before == 3
    assert len(answer.report.sites) == 20
    assert len({site.shape for site in answer.report.sites}) == 3
    assert len(traces) == len(set(traces)) == 3


def test_second_pruning_compiles_nothing(compilations):
    params = models.mlp_params(DIMS)

    def apply_fn(params, x):
        return models.mlp(params, x)

    jax.jit(lambda x: 3 * x + 0.125)(X)
    assert compilations() == 1  # the ear works
    first = nt.prune(params, apply_fn, X)
    compilations()
    again = nt.prune(params, apply_fn, X)
    assert compilations() == 0
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    # another function that does the same
    nt.prune(params, lambda p, x: models.mlp(p, x), X)
    assert compilations() == 0
    # other values of everything that is an array
    other, batch = models.mlp_params(DIMS, seed=5), models.data(64, 8, seed=9)
    compilations()
    nt.prune(other, apply_fn, batch)
    nt.prune(other, apply_fn, batch, method=nt.NetTrim(epsilon=0.3), key=3)
    assert compilations() == 0


@pytest.mark.parametrize("kind", only_fast(["numpy"], ["jax", "numpy", "number"]))
def test_what_apply_fn_closes_over_is_never_stale(kind):
    params = models.layers("abc")
    make = {
        "jax": lambda seed: models.normal(1, 8, seed=seed),
        "numpy": lambda seed: np.asarray(models.normal(1, 8, seed=seed)),
        "number": lambda seed: 0.3 * seed,
    }[kind]
    shift = {"b": make(1)}

    def apply_fn(params, x, shift=shift):
        for w in params.values():
            x = jax.nn.relu(x @ w + shift["b"])
        return x

    first = nt.prune(params, apply_fn, X, method=METHOD)
    shift["b"] = make(2)
    second = nt.prune(params, apply_fn, X, method=METHOD)
    assert not np.array_equal(first.params["b"], second.params["b"])
    # what a function without a past gives, which has the numbers as an argument
    wide = jnp.broadcast_to(jnp.asarray(shift["b"], "float32"), (1, 8))
    want = nt.prune(
        params, lambda p, x: apply_fn(p, x[0], {"b": x[1]}), (X, wide), method=METHOD
    )
    for one, two in zip(second.params.values(), want.params.values(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)
    deviations = [float(answer.report.deviation) for answer in (second, want)]
    assert deviations[0] == pytest.approx(deviations[1], abs=1e-4)


def test_networks_that_differ_in_a_constant_share_what_is_compiled(compilations):
    params = models.layers("abc")

    def network(seed):
        first = models.normal(8, 8, seed=seed)

        def apply_fn(params, x):
            x = jnp.tanh(x @ first)
            for w in params.values():
                x = jax.nn.relu(x @ w)
            return x

        return apply_fn

    answers = []
    for seed in (3, 4):
        apply_fn = network(seed)
        compilations()
        answers.append(nt.prune(params, apply_fn, X, method=METHOD))
    assert compilations() == 0
    assert not np.array_equal(answers[0].params["a"], answers[1].params["a"])


def square(a):
    return a @ a


@pytest.mark.parametrize("count, chunk", [(7, 3), (6, 3), (5, 4), (3, 8), (4, 1)])
def test_turns_of_a_stack_are_one_loop(count, chunk):
    """Two loops that may run at once can wait for each other for ever."""
    stack = jnp.asarray(np.random.default_rng(0).normal(size=(count, 4, 4)))
    run = functools.partial(batching.each, square, chunk=chunk)
    np.testing.assert_allclose(run(stack), stack @ stack, rtol=1e-12)
    assert str(jax.make_jaxpr(run)(stack)).count("scan[") == (count > chunk)


@pytest.mark.parametrize("length", [1, 3])
def test_a_function_of_each_entry_is_vmap(length):
    def function(x, more):
        W, none = x
        assert none is None
        low = jax.lax.dynamic_slice_in_dim(W, more.astype(int), 2)
        return {"low": low, "sum": W.sum(), "same": 3.0}

    rng = np.random.default_rng(0)
    given = (jnp.asarray(rng.normal(size=(length, 5)), "f"), None), jnp.arange(length)
    out, wanted = for_each(function, *given), jax.vmap(function)(*given)
    jax.tree.map(np.testing.assert_array_equal, out, wanted)
    assert jax.tree.map(jnp.shape, out) == jax.tree.map(jnp.shape, wanted)
