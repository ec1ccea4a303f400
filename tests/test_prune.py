"""What comes out of ``prune``: params, mask and report, and that the figures hold."""

import dataclasses
import functools
import json
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax._trees import is_array
from nettrim_jax.calibration.capture import Draw, capture
from nettrim_jax.methods.base import held_out
from nettrim_jax.results import CONVERGED, MAX_STEPS, SolveError
from nettrim_jax.tracing.sites import trace

TOL = nt.ADMM().tol
EPSILON = 0.2
FAST = ["square", "linen-batch-norm", "bfloat16"]
MODELS = pytest.mark.parametrize("name", only_fast(FAST, models.MODELS))
# rounding of the written weights to bfloat16, or of the network's own arithmetic
ROUNDING = {"bfloat16": 0.02, "cast": 0.02, "linen-bfloat16": 0.02}


@functools.cache
def pruned(name, epsilon=EPSILON, bias="free", **settings):
    """A pruning of a model of the registry, done once; of all that can be pruned."""
    model = models.get(name)
    settings = {"include": "."} | settings
    method = nt.NetTrim(epsilon=epsilon, bias=bias)
    return nt.prune(
        model.params, model.apply_fn, model.batch, method=method, **settings
    )


arrays = models.arrays


def same_bits(one, two):
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True))


def leaf(tree, path):
    for part in path.split("/"):
        tree = tree[part]
    return tree


def run(name, params):
    """The network's floating outputs in float64, in one vector."""
    model = models.get(name)
    out = arrays(eqx.filter_jit(model.apply_fn)(params, model.batch))
    floats = [a for a in out if jnp.issubdtype(a.dtype, jnp.floating)]
    return np.concatenate([a.astype(float).ravel() for a in floats])


# ---- params and mask


@MODELS
def test_params_keep_tree_shapes_and_dtypes(name):
    old, new = models.get(name).params, pruned(name).params
    assert jax.tree.structure(old) == jax.tree.structure(new)
    for before, after in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        if is_array(before):
            assert (before.shape, before.dtype) == (after.shape, after.dtype)
        else:
            assert before is after


@MODELS
@pytest.mark.parametrize("mode", only_fast(["parallel"], ["parallel", "cascade"]))
def test_where_all_is_kept_every_bit_stays(name, mode):
    model = models.get(name)
    answer = nt.prune(
        model.params,
        model.apply_fn,
        model.batch,
        method=nt.Magnitude(nt.Sparsity(0.0)),
        mode=mode,
        include=".",
    )
    assert same_bits(arrays(answer.params), arrays(model.params))
    assert all(mask.all() for mask in arrays(answer.mask))
    assert float(answer.report.deviation) == 0
    for site in answer.report.sites:
        assert int(site.nonzeros) == site.size and float(site.error) < 0.02


@MODELS
def test_mask_says_what_is_zero(name):
    model, answer = models.get(name), pruned(name)
    assert jax.tree.structure(model.params) == jax.tree.structure(answer.mask)
    graph = trace(model.apply_fn, model.params, model.batch)
    assert [s.path for s in answer.report.sites] == [s.path for s in graph.sites]
    inside = [np.zeros(leaf.size, bool) for leaf in arrays(model.params)]
    for site in graph.sites:
        inside[site.leaf][site.index.ravel()] = True
    for new, mask, taken in zip(
        arrays(answer.params), arrays(answer.mask), inside, strict=True
    ):
        assert mask.dtype == bool
        if taken.any():
            assert mask.shape == new.shape
            np.testing.assert_array_equal(mask.ravel()[taken], new.ravel()[taken] != 0)
            mask = mask.ravel()[~taken]
        assert mask.all()
    # the report counts the same
    for site, entry in zip(graph.sites, answer.report.sites, strict=True):
        entries = arrays(answer.params)[site.leaf].ravel()[site.index]
        assert int(entry.nonzeros) == np.count_nonzero(entries)
        assert entry.size == entries.size


@MODELS
def test_only_layers_and_their_biases_change(name):
    model, answer = models.get(name), pruned(name)
    graph = trace(model.apply_fn, model.params, model.batch)
    touched = {site.leaf for site in graph.sites}
    touched |= {site.bias[0] for site in graph.sites if site.bias is not None}
    old, new = jax.tree.leaves(model.params), jax.tree.leaves(answer.params)
    old, new = ([a for a in leaves if is_array(a)] for leaves in (old, new))
    for i, (before, after) in enumerate(zip(old, new, strict=True)):
        if i not in touched:
            assert jnp.array_equal(before, after), graph.paths[i]


@MODELS
def test_network_runs_and_deviation_is_measured(name):
    before, after = run(name, models.get(name).params), run(name, pruned(name).params)
    assert np.isfinite(after).all()
    want = np.linalg.norm(after - before) / np.linalg.norm(before)
    deviation = float(pruned(name).report.deviation)
    assert deviation == pytest.approx(want, rel=1e-4, abs=ROUNDING.get(name, 1e-6))


@MODELS
def test_error_is_within_epsilon_and_certified(name):
    for site in pruned(name).report.sites:
        assert int(site.result) == CONVERGED, site.path
        assert float(site.gap) <= TOL and float(site.violation) <= TOL
        # a distance of tol to the set moves the response by tol of its norm
        rounding = ROUNDING.get(name, 1e-5)
        assert float(site.error) <= EPSILON + TOL + rounding, site.path
        assert np.isfinite(float(site.held_out_error))


@MODELS
def test_error_is_what_the_network_does(name):
    """With one layer replaced, the network answers as the report says."""
    model, answer = models.get(name), pruned(name)
    graph = trace(model.apply_fn, model.params, model.batch)
    if any(
        use.loops or use.upstream & site.uses[0].mark
        for site in graph.sites
        for use in site.uses
    ):
        pytest.skip("a layer in a loop, or called again, feeds itself")
    old, new = (
        [leaf for leaf in jax.tree.leaves(tree) if is_array(leaf)]
        for tree in (model.params, answer.params)
    )

    def answers(leaves):
        chosen = tuple(range(len(graph.sites)))
        batch = [jnp.asarray(leaf) for leaf in jax.tree.leaves(model.batch)]
        draw = Draw(chosen, 4096, ((),) * len(chosen))
        seen, _ = capture(
            graph, draw, graph.consts, [*leaves, *batch], jax.random.key(0)
        )
        return [
            np.where(rows.valid[:, :, None], np.asarray(rows.P, float), 0)
            for rows in seen
        ]

    trained = answers(old)
    for k, (site, entry) in enumerate(
        zip(graph.sites, answer.report.sites, strict=True)
    ):
        if site.caution is not None:
            continue  # what else reads it changes too
        leaves = list(old)
        places = [(site.leaf, site.index)]
        places += [] if site.bias is None else [site.bias]
        for i, index in places:
            value = np.array(old[i]).ravel()
            value[index] = np.asarray(new[i]).ravel()[index]
            leaves[i] = jnp.asarray(value.reshape(old[i].shape))
        held = trained[k].shape[1] - entry.shape[1]
        want, got = trained[k], answers(leaves)[k]
        if site.response == "relu":
            want, got = np.maximum(want, 0), np.maximum(got, 0)
        out, rest = held_out(trained[k].shape[1], held)
        for rows, figure in ((rest, entry.error), (out, entry.held_out_error)):
            error = np.linalg.norm((got - want)[:, rows])
            error /= np.linalg.norm(want[:, rows])
            rounding = ROUNDING.get(name, 1e-5)
            assert error == pytest.approx(float(figure), rel=1e-3, abs=rounding)


@MODELS
def test_weights_are_smaller_than_the_trained(name):
    model = models.get(name)
    graph = trace(model.apply_fn, model.params, model.batch)
    old, new = arrays(model.params), arrays(pruned(name).params)
    for site in graph.sites:
        before, after = (
            np.abs(a[site.leaf].astype(float).ravel()[site.index]).sum()
            for a in (old, new)
        )
        assert after <= before * (1 + 2 * TOL) + 1e-6, site.path


def test_theorem_1_layer_by_layer():
    """Every layer from the trained network's inputs stays within epsilon of it."""
    model = models.get("square")
    answer = pruned("square", held_out=0.0)
    x = np.asarray(model.batch, float)
    for i, site in enumerate(answer.report.sites):
        W, b, W_new, b_new = (
            np.asarray(params[f"{i}"][name], float)
            for params in (model.params, answer.params)
            for name in ("w", "b")
        )
        last = i == 2
        assert site.response == ("linear" if last else "relu")
        want, got = x @ W + b, x @ W_new + b_new
        if not last:
            want, got = np.maximum(want, 0), np.maximum(got, 0)
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        assert error <= EPSILON * (1 + 1e-2)
        assert float(site.error) == pytest.approx(error, rel=1e-4)
        assert np.isnan(float(site.held_out_error))
        x = want


# ---- orderings


def test_larger_epsilon_keeps_less():
    reports = [pruned("square", epsilon).report for epsilon in (0.05, EPSILON, 0.5)]
    nonzeros = [int(report.nonzeros) for report in reports]
    assert nonzeros[0] > nonzeros[1] > nonzeros[2]
    sizes = [
        [np.abs(leaf(pruned("square", e).params, s.path)).sum() for s in r.sites]
        for e, r in zip((0.05, EPSILON, 0.5), reports, strict=True)
    ]
    assert (np.diff(np.asarray(sizes, float), axis=0) < 0).all()


@pytest.mark.parametrize("epsilon", [1.0, 2.0])
def test_epsilon_of_one_needs_no_weight(epsilon):
    answer = pruned("square", epsilon)
    assert int(answer.report.nonzeros) == 0
    assert float(answer.report.sparsity) == 1


@slow
def test_free_bias_needs_no_more_weight_than_a_fixed_one():
    free, fixed = pruned("square"), pruned("square", bias="fixed")
    for i in range(3):
        sizes = [np.abs(a.params[f"{i}"]["w"]).sum() for a in (free, fixed)]
        assert sizes[0] <= sizes[1] * (1 + 2 * TOL)
        kept, old = fixed.params[f"{i}"]["b"], models.get("square").params[f"{i}"]["b"]
        assert same_bits([np.asarray(kept)], [np.asarray(old)])
        assert not np.array_equal(free.params[f"{i}"]["b"], old)


@slow
def test_penalized_bias_counts():
    free, penalized = pruned("square"), pruned("square", bias="penalized")
    for i in range(3):
        size = {
            name: [np.abs(a.params[f"{i}"][name]).sum() for a in (free, penalized)]
            for name in ("w", "b")
        }
        assert sum(s[1] for s in size.values()) <= (
            sum(s[0] for s in size.values()) * (1 + 2 * TOL)
        )
        assert size["w"][0] <= size["w"][1] * (1 + 2 * TOL)


def test_better_than_magnitude_at_equal_count():
    model, answer = models.get("square"), pruned("square")
    cut = jax.tree.map(lambda a: a, model.params)
    for site in answer.report.sites:
        W = np.asarray(leaf(model.params, site.path)).copy()
        order = np.argsort(np.abs(W).ravel())
        W.ravel()[order[: site.size - int(site.nonzeros)]] = 0
        cut[site.path[0]]["w"] = jnp.asarray(W)
    before = run("square", model.params)
    moved = [np.linalg.norm(run("square", p) - before) for p in (answer.params, cut)]
    assert moved[0] < 0.8 * moved[1]


# ---- failures

HASTY = nt.ADMM(max_steps=10, tol=1e-6)


def hasty(on_failure):
    return pruned("square", 0.05, solver=HASTY, on_failure=on_failure)


def test_failure_raises_and_names_the_layers():
    before = arrays(models.get("square").params)
    with pytest.raises(SolveError, match="3 of 3 layers did not reach tol=1e-06") as e:
        hasty("raise")
    for path in ("0/w", "1/w", "2/w"):
        assert f"{path}: max_steps" in str(e.value)
    assert "ADMM(max_steps=...)" in str(e.value) and "on_failure=" in str(e.value)
    assert same_bits(before, arrays(models.get("square").params))
    # an hour's work is not lost
    reached = e.value.pruned
    assert [int(site.result) for site in reached.report.sites] == [MAX_STEPS] * 3
    assert not same_bits(arrays(reached.params), before)
    assert len(arrays(reached.mask)) == len(before)


def test_failure_warns_and_goes_on():
    with pytest.warns(UserWarning, match="3 of 3 layers did not reach tol=1e-06"):
        answer = hasty("warn")
    assert [int(site.result) for site in answer.report.sites] == [MAX_STEPS] * 3
    assert not same_bits(arrays(answer.params), arrays(models.get("square").params))


def test_failure_keeps_layers_as_trained():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = hasty("keep")
    assert same_bits(arrays(answer.params), arrays(models.get("square").params))
    assert all(mask.all() for mask in arrays(answer.mask))
    for site in answer.report.sites:
        assert int(site.result) == MAX_STEPS and "max_steps" in site.message
        assert int(site.nonzeros) == site.size
        assert float(site.error) == pytest.approx(0, abs=1e-6)
        assert f"{site.path}: max_steps" in str(answer.report)
    assert float(answer.report.deviation) == pytest.approx(0, abs=1e-6)


# ---- methods by path


FOUR = models.mlp_params((8,) * 5)


def test_first_matching_expression_wins():
    method = {"[03]/w$": nt.NetTrim(0.4), "^1": None, ".*": nt.NetTrim(0.1)}
    answer = nt.prune(FOUR, models.mlp, models.get("square").batch, method=method)
    sites = answer.report.sites
    assert [site.path for site in sites] == ["0/w", "2/w", "3/w"]
    assert [float(site.epsilon) for site in sites] == pytest.approx([0.4, 0.1, 0.4])
    [(path, reason)] = answer.report.skipped
    assert path == "1/w" and "'^1'" in reason and "None" in reason
    for name in ("w", "b"):
        kept = answer.params["1"][name], FOUR["1"][name]
        assert same_bits(*([np.asarray(a)] for a in kept))
    assert bool(answer.mask["1"]["w"].all())


def test_what_no_expression_matches_is_left_alone():
    method = {"[012]/w": nt.NetTrim(0.4)}
    answer = nt.prune(FOUR, models.mlp, models.get("square").batch, method=method)
    assert [site.path for site in answer.report.sites] == ["0/w", "1/w", "2/w"]
    [(path, reason)] = answer.report.skipped
    assert path == "3/w" and "no pattern" in reason
    assert same_bits(arrays(answer.params["3"]), arrays(FOUR["3"]))


def test_everything_may_be_left_alone():
    model = models.get("square")
    answer = nt.prune(model.params, model.apply_fn, model.batch, method={".*": None})
    assert answer.report.sites == ()
    assert [path for path, _ in answer.report.skipped] == ["0/w", "1/w", "2/w"]
    assert same_bits(arrays(answer.params), arrays(model.params))
    assert all(mask.all() for mask in arrays(answer.mask))
    assert float(answer.report.deviation) == 0 and "0/w" in str(answer.report)


# ---- rows, weights, seeds


def test_rows_and_held_out():
    model = models.get("square")

    def shapes(**settings):  # needs no compilation
        def call(params, batch):
            return nt.prune(params, model.apply_fn, batch, **settings)

        report = jax.eval_shape(call, model.params, model.batch).report
        return {site.shape for site in report.sites}

    assert shapes() == {(1, 58, 8, 8)}  # 6 of 64 held out by default
    assert shapes(held_out=0.0) == {(1, 64, 8, 8)}
    assert shapes(held_out=0.5) == {(1, 32, 8, 8)}
    assert shapes(held_out=0.999) == {(1, 1, 8, 8)}  # one is left for the solver
    assert shapes(rows=32, held_out=0.25) == {(1, 24, 8, 8)}
    assert shapes(rows=1) == {(1, 1, 8, 8)}
    assert shapes(rows=64) == shapes(rows=65) == {(1, 58, 8, 8)}


@slow
def test_rows_of_a_convolution_are_its_positions():
    sites = pruned("grouped").report.sites
    # 4 images of 5 x 5, a tenth held out; lanes are groups
    assert [site.shape for site in sites] == [(2, 90, 18, 3)]


def test_seeds_reproduce():
    model = models.get("square")
    again = nt.prune(
        model.params,
        model.apply_fn,
        model.batch,
        method=nt.NetTrim(epsilon=EPSILON),
        key=jax.random.key(0),
    )
    one, other = pruned("square"), pruned("square", key=1)
    assert same_bits(arrays(one.params), arrays(again.params))
    assert not same_bits(arrays(one.params), arrays(other.params))
    # another key holds other rows out
    errors = [
        [float(s.held_out_error) for s in a.report.sites] for a in (one, again, other)
    ]
    assert errors[0] == errors[1] != errors[2]


@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_rows_of_weight_zero_do_not_matter(dtype):
    params = models.layers("abc")

    def apply_fn(params, x):  # a residual: padding reaches t as well as X
        for w in params.values():
            x = jax.nn.relu(x @ w + x)
        return x

    x = np.asarray(models.data(64, 8))
    real = np.arange(64) % 4 > 0
    other = np.where(real[:, None], x, 1e6 * x[::-1] + 7).astype("float32")
    answers = [
        nt.prune(params, apply_fn, batch, weights=jnp.asarray(real, dtype))
        for batch in (x, other)
    ]
    assert same_bits(*(arrays(answer.params) for answer in answers))
    for one, two in zip(*(answer.report.sites for answer in answers), strict=True):
        assert float(one.error) == float(two.error) <= 0.1 + TOL + 1e-5
        assert float(one.held_out_error) == float(two.held_out_error)


def test_padding_leaves_rows_to_the_solver():
    """What is held out is a share of the rows that count, not of all."""
    model = models.get("square")
    for real in (5, 20):  # of 64
        answer = nt.prune(
            model.params,
            model.apply_fn,
            model.batch,
            method=nt.NetTrim(epsilon=EPSILON),
            weights=jnp.asarray(np.arange(64) < real, jnp.float32),
            on_failure="keep",
        )
        for site in answer.report.sites:
            assert float(site.epsilon) == pytest.approx(EPSILON)
            assert int(site.nonzeros) > 0


def test_a_layer_that_no_row_reaches_is_not_emptied():
    """A branch that the batch never takes says nothing about its weights."""
    params = models.layers(("always", "never", "too"))

    def apply_fn(params, x):
        z = x @ params["always"] @ params["too"]
        return jax.lax.cond(
            jnp.sum(x) > 1e9, lambda z: z @ params["never"], lambda z: z, z
        )

    try:
        answer = nt.prune(params, apply_fn, models.data(64, 8))
    except nt.NetTrimError as error:
        assert "never" in str(error)
    else:
        assert same_bits(arrays(answer.params["never"]), arrays(params["never"]))


# ---- progress and memory


def test_progress_counts_to_its_total():
    calls = []
    pruned("square", progress=lambda *call: calls.append(call))
    done, totals, whats = zip(*calls, strict=True)
    assert done[0] == 0 and done[-1] == totals[0]
    assert list(done) == sorted(done) and len(set(totals)) == 1
    assert all(isinstance(what, str) and what for what in whats)


def test_progress_bar_is_for_terminals(capsys):
    pruned("square", progress=True)
    assert "nettrim [" in capsys.readouterr().err
    for quiet in (False, None):  # pytest's stderr is no terminal
        pruned("square", progress=quiet)
        out = capsys.readouterr()
        assert out.err == out.out == ""


def test_lanes_in_turns_give_the_same():
    whole, turns = pruned("square"), pruned("square", memory=1)
    for one, two in zip(arrays(whole.params), arrays(turns.params), strict=True):
        np.testing.assert_allclose(one, two, atol=TOL)
    for one, two in zip(whole.report.sites, turns.report.sites, strict=True):
        assert abs(int(one.nonzeros) - int(two.nonzeros)) <= 1


# ---- the report


def test_report_is_a_table_of_100_columns():
    report = pruned("square").report
    long = [dataclasses.replace(s, path=f"{s.path}/{'x' * 150}") for s in report.sites]
    skipped = (("a" * 60, "b" * 90), ("short", "reason"))
    for shown in (
        report,
        dataclasses.replace(report, sites=tuple(long), skipped=skipped),
        dataclasses.replace(report, sites=(), skipped=skipped),
        pruned("linen-batch-norm").report,
    ):
        lines = str(shown).split("\n")
        assert max(map(len, lines)) <= 100
        assert all(line == line.rstrip() for line in lines)
        assert lines[0].startswith("layer") and "moved by" in str(shown)
        assert ("left alone: short: reason" in lines) == (shown.skipped == skipped)
    text = str(report)
    for site in report.sites:
        [line] = [line for line in text.split("\n") if line.startswith(site.path)]
        for figure in (site.response, f"{site.size}", f"{int(site.nonzeros)}"):
            assert figure in line.split()


def test_report_is_plain_data():
    for report in (pruned("square").report, pruned("square", held_out=0.0).report):
        plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert plain["size"] == 192 and len(plain["sites"]) == 3
        for site, entry in zip(report.sites, plain["sites"], strict=True):
            assert entry["path"] == site.path and entry["kind"] == "dense"
            assert entry["shape"] == list(site.shape)
            assert entry["nonzeros"] == int(site.nonzeros)
            assert entry["sparsity"] == pytest.approx(float(site.sparsity))
            assert entry["result"] == "converged" and entry["steps"] % 20 == 0
            nothing = np.isnan(float(site.held_out_error))
            assert (entry["held_out_error"] is None) == nothing


def test_report_adds_up():
    for report in (pruned("square").report, pruned("grouped").report):
        assert report.size == sum(site.size for site in report.sites)
        nonzeros = sum(int(site.nonzeros) for site in report.sites)
        assert int(report.nonzeros) == nonzeros
        assert float(report.sparsity) == pytest.approx(1 - nonzeros / report.size)
        for site in report.sites:
            lanes, _, d_in, d_out = site.shape
            assert site.size == lanes * d_in * d_out
            assert float(site.epsilon) == pytest.approx(EPSILON)


def test_report_names_what_was_left():
    model = models.get("square")
    params = {**model.params, "unused": models.normal(8, 8)}

    def apply_fn(params, x):
        return model.apply_fn({name: params[name] for name in "012"}, x)

    answer = nt.prune(params, apply_fn, model.batch)
    assert answer.report.skipped == (("unused", "apply_fn does not use it"),)
    assert "left alone: unused: apply_fn does not use it" in str(answer.report)
    assert answer.report.size == 192  # of the pruned leaves only
    assert bool(answer.mask["unused"].all())
    assert same_bits(arrays(answer.params["unused"]), arrays(params["unused"]))


def test_an_output_may_be_anything():
    """What apply_fn returns is only compared; a number beside the arrays is fine."""
    model = models.get("square")

    def apply_fn(params, x):
        return {"y": model.apply_fn(params, x), "step": 3, "loss": 1.0, "none": None}

    answer = nt.prune(
        model.params, apply_fn, model.batch, method=nt.NetTrim(epsilon=EPSILON)
    )
    assert same_bits(arrays(answer.params), arrays(pruned("square").params))
    assert np.isfinite(float(answer.report.deviation))


# ---- what is less usual


def test_nothing_to_prune_is_no_error():
    model = models.get("square")
    for mode in ("parallel", "cascade"):
        answer = nt.prune(
            model.params,
            model.apply_fn,
            model.batch,
            method={".*": None},
            mode=mode,
            progress=True,
        )
        assert same_bits(arrays(answer.params), arrays(model.params))
        assert answer.report.sites == ()


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_penalty_weights_that_are_no_weights(weight):
    model, method = models.get("square"), nt.NetTrim(penalty=nt.L1(weight))
    with pytest.raises(nt.NetTrimError, match="expected positive, finite penalty"):
        nt.prune(model.params, model.apply_fn, model.batch, method=method)


def test_penalty_weights_of_another_shape_name_the_layer():
    model, method = models.get("square"), nt.NetTrim(penalty=nt.L1(np.ones((3, 8))))
    with pytest.raises(nt.NetTrimError, match=r"0/w: .* broadcast to W \[8, 8\], got"):
        nt.prune(model.params, model.apply_fn, model.batch, method=method)


@slow
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_a_penalized_bias_behind_a_scale_pays_for_itself(scale):
    # relu(s (x w) + b): w and b are weighed as they are, whatever s
    x, w, b = models.data(64, 8), models.normal(8, 6), 0.3 * models.normal(6)
    s = jnp.asarray(scale, "float32")
    answer = nt.prune(
        {"w": w, "b": b, "s": s},
        lambda p, x: jax.nn.relu(p["s"] * (x @ p["w"]) + p["b"][None, :]),
        x,
        method=nt.NetTrim(epsilon=0.2, bias="penalized"),
        solver=nt.ADMM(tol=1e-5),
        held_out=0.0,
    )
    Y = jax.nn.relu(s * (x @ w) + b[None, :])
    weight = jnp.concatenate([jnp.full((8, 6), 1 / s), jnp.ones((1, 6), "float32")])
    epsilon = 0.2 * jnp.linalg.norm(Y)
    best = nt.solve(
        nt.relu_program(x, Y, epsilon, penalty=nt.L1(weight), bias="penalized"),
        nt.ADMM(tol=1e-5),
    )
    got = sum(float(jnp.abs(answer.params[name]).sum()) for name in "wb")
    assert got == pytest.approx(float(best.stats.objective), rel=1e-3)


@slow
def test_rounds_bring_the_log_sum_down():
    x, w = models.data(200, 30), models.normal(30, 10)

    def sizes(rounds):
        answer = nt.prune(
            {"w": w},
            lambda p, x: jax.nn.relu(x @ p["w"]),
            x,
            method=nt.NetTrim(epsilon=0.1, rounds=rounds),
            solver=nt.ADMM(tol=1e-4),
            held_out=0.0,
        )
        assert int(answer.report.sites[0].steps) <= 1000
        return np.asarray(answer.params["w"]), int(answer.report.nonzeros)

    first, before = sizes(1)
    last, after = sizes(4)
    assert after < before
    # what the rounds minimise, with a floor that both share
    delta = 0.1 * np.sqrt(np.mean(first[first != 0] ** 2))
    assert np.log(np.abs(last) + delta).sum() < np.log(np.abs(first) + delta).sum()


@slow
def test_a_kept_layer_leaves_the_next_its_budget():
    model = models.get("square")
    answer = nt.prune(
        model.params,
        model.apply_fn,
        model.batch,
        method={"0/w": nt.NetTrim(epsilon=0.0), ".*": nt.NetTrim(epsilon=0.1)},
        mode="cascade",
        solver=nt.ADMM(max_steps=200),
        on_failure="keep",
    )
    first, second, _ = answer.report.sites
    assert int(first.result) == MAX_STEPS and int(first.nonzeros) == first.size
    assert float(second.epsilon) == pytest.approx(0.1)
    assert int(second.nonzeros) < second.size


def test_rows_that_were_all_held_out_leave_the_weights():
    model = models.get("square")
    answer = nt.prune(
        model.params,
        model.apply_fn,
        model.batch,
        weights=(jnp.arange(64) < 1).astype("float32"),
        held_out=0.6,
        on_failure="keep",
    )
    for site in answer.report.sites:
        assert int(site.nonzeros) > 0 or float(site.held_out_error) < 0.5


def test_memory_may_be_a_float():
    whole, turns = pruned("square"), pruned("square", memory=50000.0)
    for one, two in zip(arrays(whole.params), arrays(turns.params), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


# ---- experts


@slow
def test_an_expert_sees_the_rows_that_are_sent_to_it():
    """As if every expert were pruned alone, on its own rows."""
    model = models.get("ragged-experts")
    settings = {"rows": 10**6, "held_out": 0.0, "bias": "fixed"}
    together = pruned("ragged-experts", **settings)
    up, bias = model.params["up"], model.params["bias"]
    expert = np.argmax(np.asarray(model.batch @ model.params["router"]), axis=1)
    assert len(np.unique(expert)) == 3
    for i in range(3):
        alone = nt.prune(
            up[i],
            lambda w, x: jax.nn.relu(x @ w + bias[i][None, :]),  # noqa: B023
            model.batch[expert == i],
            method=nt.NetTrim(epsilon=EPSILON, bias="fixed"),
            held_out=0.0,
        )
        size = [np.abs(a).sum() for a in (together.params["up"][i], alone.params)]
        assert size[0] == pytest.approx(size[1], rel=2 * TOL)


@slow
def test_a_router_may_change_its_mind_in_cascade_mode():
    """So its experts are pruned as the trained network feeds them."""
    parallel = pruned("ragged-experts").report
    cascade = pruned("ragged-experts", mode="cascade").report
    for one, two in zip(parallel.sites, cascade.sites, strict=True):
        assert float(one.epsilon) == float(two.epsilon)
        assert int(one.nonzeros) == int(two.nonzeros)


# ---- constants joined to a leaf


@slow
def test_constants_beside_a_leaf_belong_to_what_is_added():
    """Pruned as if the constant inputs' part were a bias that stays."""
    w, x = models.normal(5, 6), models.data(200, 8)
    rest = models.normal(3, 6, seed=1)

    def joined(w, x):
        return jax.nn.relu(x @ jnp.concatenate([rest[:1], w, rest[1:]]))

    def apart(w, inputs):
        return jax.nn.relu(inputs[0] @ w + inputs[1])

    outside = jnp.matmul(x[:, [0, 6, 7]], rest, precision="highest")
    method = nt.NetTrim(epsilon=0.2)
    sizes = [
        np.abs(nt.prune(w, apply_fn, batch, method=method, held_out=0.0).params)
        for apply_fn, batch in ((joined, x), (apart, (x[:, 1:6], outside)))
    ]
    assert 0 < sizes[0].sum() < 0.9 * np.abs(w).sum()
    assert sizes[0].sum() == pytest.approx(sizes[1].sum(), rel=2 * TOL)


@pytest.mark.parametrize("method", [nt.NetTrim(0.2), nt.Magnitude(nt.Sparsity(0.6))])
def test_removed_weights_are_zeros_without_a_sign(rng, method):
    # one with a sign is no zero to a reader of bits, and takes room in a file
    params = {k: jnp.asarray(rng.normal(size=(12, 12)), jnp.float32) for k in "ab"}
    x = jnp.asarray(rng.normal(size=(60, 12)), jnp.float32)

    def apply_fn(params, x):  # one weight is divided by what is below zero
        return jax.nn.relu(x @ (np.float32(-2) * params["a"])) @ params["b"]

    pruned = nt.prune(params, apply_fn, x, method=method).params
    for path, leaf in pruned.items():
        zeros = np.asarray(leaf) == 0
        assert zeros.sum() > 20, path
        assert not np.signbit(np.asarray(leaf)[zeros]).any(), path
