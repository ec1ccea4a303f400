"""One number of weights for all layers: the split by brute force, and prune."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.allocation import curves as splitting
from nettrim_jax.calibration import splits as dealing
from nettrim_jax.methods.counts import Count
from nettrim_jax.results import ApplyFnError, BatchError, MethodError, SolveError

QUICK = settings(max_examples=25, deadline=None, derandomize=True, database=None)
MIXED = nt.Sparsity(0.6, scope="network")

# ---- the split, as numbers


def curves(rng, layers, convex):
    """Random curves of a few points each, short enough for brute force."""
    out = []
    for _ in range(layers):
        counts = np.cumsum(rng.integers(1, 5, int(rng.integers(2, 5))))
        costs = rng.exponential(size=len(counts)) ** 2
        if convex:  # a power law, straight in logarithms
            costs = rng.exponential() * counts ** -rng.uniform(0.3, 3)
        if rng.random() < 0.5:  # straight in the logarithm of the number
            counts, costs = (counts[:2], costs[:2]) if convex else (counts, costs)
            costs[-1] = 0
        pairs = zip(counts.tolist(), costs.tolist(), strict=True)
        out.append([splitting.Point(n, c) for n, c in pairs])
    return out


def splits(some, total):
    """Every way to share a number out, with its cost."""
    ranges = [range(curve[0][0], curve[-1][0] + 1) for curve in some]
    for counts in itertools.product(*ranges):
        if sum(counts) == total:
            yield splitting.cost(some, counts), counts


def dents(curve):
    """How far a curve is above the lowest line between any two of its points."""
    points = [(n, splitting.between(curve, n)) for n in range(*ends(curve))]
    lowest = [
        min(
            a + (b - a) * ((n - m) / (k - m) if k > m else 0.0)
            for (m, a), (k, b) in itertools.product(points, points)
            if m <= n <= k
        )
        for n, _ in points
    ]
    return max(c - low for (_, c), low in zip(points, lowest, strict=True))


def ends(curve):
    return curve[0][0], curve[-1][0] + 1


def totals(rng, some):
    least, most = (sum(curve[i][0] for curve in some) for i in (0, -1))
    return {least, most, *rng.integers(least, most + 1, 4).tolist()}


@pytest.mark.parametrize("seed", range(12))
def test_split_of_convex_curves_is_the_best_there_is(seed):
    rng = np.random.default_rng(seed)
    some = curves(rng, 3, convex=True)
    assert max(map(dents, some)) < 1e-12
    for total in totals(rng, some):
        found = splitting.split(some, total)
        assert sum(found) == total
        best = min(cost for cost, _ in splits(some, total))
        assert splitting.cost(some, found) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_split_misses_the_best_by_no_more_than_one_dent(seed):
    rng = np.random.default_rng(100 + seed)
    some = curves(rng, 3, convex=False)
    for total in totals(rng, some):
        found = splitting.split(some, total)
        assert sum(found) == total
        assert all(a <= n < b for n, (a, b) in zip(found, map(ends, some), strict=True))
        best = min(cost for cost, _ in splits(some, total))
        got = splitting.cost(some, found)
        assert best - 1e-12 <= got <= best + max(map(dents, some)) + 1e-12


@QUICK
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.floats(0, 1))
def test_evenly_is_the_same_share_of_all(sizes, share):
    total = round(share * sum(sizes))
    counts = splitting.evenly(sizes, total)
    assert sum(counts) == total
    for n, size in zip(counts, sizes, strict=True):
        assert 0 <= n <= size and abs(n - size * total / sum(sizes)) < 1


@QUICK
@given(st.floats(1e-4, 1 - 1e-4))
def test_densities_hold_the_asked_one(asked):
    grid = splitting.densities(asked)
    assert asked in grid and len(grid) <= 8
    assert all(0 < d < 1 for d in grid)


# ---- a number as a pattern


@QUICK
@given(st.integers(1, 10**6), st.floats(0, 1))
def test_a_share_stands_for_any_number(size, share):
    zeros = round(share * size)
    assert nt.Sparsity(zeros / size).nonzeros((1, size, 1)) == size - zeros


keep_of = jax.jit(lambda pattern, score: pattern.keep(score))


@QUICK
@given(
    st.sampled_from([(1, 13, 4), (3, 5, 9)]),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_a_count_keeps_what_a_share_keeps(shape, share, seed):
    score = np.random.default_rng(seed).integers(0, 5, shape)
    zeros = round(share * score.size)
    count = Count(left=jnp.int32(score.size - zeros), shape=shape)
    want = nt.Sparsity(zeros / score.size).keep(score)
    np.testing.assert_array_equal(keep_of(count, score), want)


def test_parts_of_a_count_add_up_and_do_not_overflow():
    shape = 1, 1000, 2**22
    count = Count(left=2**31 - 5, shape=shape)
    parts = [int(count.nonzeros((1, i, 2**22))) for i in range(1001)]
    assert parts[0] == 0 and parts[-1] == 2**31 - 5
    steps = np.diff(parts)
    assert (steps >= 0).all() and steps.max() - steps.min() <= 1
    traced = jax.jit(
        lambda left: Count(left=left, shape=shape).nonzeros((1, 999, 2**22))
    )
    assert int(traced(jnp.int32(2**31 - 5))) == parts[999]
    few = Count(left=jnp.int32(30), shape=(1, 10, 12))
    assert int(few.nonzeros((1, 10, 4))) == 10
    assert int(few.nonzeros((1, 5, 4))) == 5


def test_a_budget_of_all_layers_says_nothing_of_one():
    score = jnp.ones((1, 4, 3))
    for call in (
        lambda: MIXED.keep(score),
        lambda: MIXED.nonzeros(score.shape),
        lambda: MIXED.largest(score, 3),
        lambda: nt.Magnitude(MIXED).answer(score, None),
    ):
        with pytest.raises(MethodError, match="all layers keep together"):
            call()


# ---- magnitudes, all at once


def magnitude_by_numpy(params, paths, level):
    """Zeros the smallest of all leaves together, the last among equals."""
    flat = np.concatenate([np.abs(np.ravel(params[path])) for path in paths])
    left = len(flat) - round(level * len(flat))
    kept = np.zeros(len(flat), bool)
    kept[np.argsort(-flat, kind="stable")[:left]] = True
    ends = np.cumsum([np.size(params[path]) for path in paths])[:-1]
    parts = zip(paths, np.split(kept, ends), strict=True)
    return {
        path: np.where(part.reshape(np.shape(params[path])), params[path], 0)
        for path, part in parts
    }


def plain(ties=False):
    """Two layers and what comes before them, of unlike scales."""
    a, b = models.normal(8, 12), 0.3 * models.normal(12, 5, seed=1)
    if ties:
        a, b = jnp.round(a), jnp.round(3 * b)
    return {"a": a, "b": b}, lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]


@slow
@pytest.mark.parametrize("mode", ["parallel", "cascade"])
@pytest.mark.parametrize("level", [0.0, 0.7, 0.93])
def test_magnitudes_of_all_layers_at_once(level, mode):
    params, apply_fn = plain(ties=level == 0.7)
    method = nt.Magnitude(nt.Sparsity(level, scope="network"))
    x = models.data(30, 8)
    pruned = nt.prune(params, apply_fn, x, method=method, mode=mode)
    want = magnitude_by_numpy(params, "ab", level)
    for path in "ab":
        np.testing.assert_array_equal(pruned.params[path], want[path])
    assert pruned.report.split is None


@slow
def test_magnitudes_need_no_concrete_values():
    params, apply_fn = plain()
    method, x = nt.Magnitude(MIXED), models.data(30, 8)
    new = jax.jit(lambda p: nt.prune(p, apply_fn, x, method=method).params)(params)
    want = magnitude_by_numpy(params, "ab", 0.6)
    for path in "ab":
        np.testing.assert_array_equal(new[path], want[path])


@slow
def test_steps_of_a_loop_have_their_own_numbers():
    W = models.normal(3, 8, 8) * jnp.asarray([1, 0.1, 2], "float32")[:, None, None]

    def looped(W, x):
        return jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, W)[0]

    method = nt.Magnitude(nt.Sparsity(0.8, scope="network"))
    new = nt.prune(W, looped, models.data(30, 8), method=method).params
    np.testing.assert_array_equal(
        new, magnitude_by_numpy({"w": W}, "w", 0.8)["w"].reshape(W.shape)
    )
    assert len(set((np.asarray(new) != 0).sum((1, 2)).tolist())) == 3


def nonzeros(report):
    return int(report.nonzeros), report.size - round(0.6 * report.size)


@slow
@pytest.mark.parametrize("name", models.MODELS)
def test_magnitude_leaves_exactly_what_is_asked(name):
    model = models.get(name)
    report = nt.prune(
        model.params, model.apply_fn, model.batch, method=nt.Magnitude(MIXED)
    ).report
    left, want = nonzeros(report)
    assert left == want


# ---- by what the network does


def network():
    """Three layers of which the middle one carries little."""
    rng = np.random.default_rng(3)
    params = {
        name: {
            "w": rng.normal(size=shape) * scale,
            "b": 0.1 * rng.normal(size=shape[1]),
        }
        for name, shape, scale in (
            ("in", (12, 16), 1.0),
            ("side", (12, 16), 0.05),
            ("out", (16, 6), 1.0),
        )
    }
    x = rng.normal(size=(400, 12)) * np.exp(rng.normal(size=12))
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (params, x))


def apply_fn(params, x):
    wide, side, last = params["in"], params["side"], params["out"]
    h = jax.nn.relu(x @ wide["w"] + wide["b"][None, :])
    h = h + jax.nn.relu(x @ side["w"] + side["b"][None, :])
    return h @ last["w"] + last["b"][None, :]


def deviation(params, new, parts, call=apply_fn):
    """Of the output on all parts, by numpy."""
    old, new = (np.concatenate([call(p, x) for x in parts]) for p in (params, new))
    return np.linalg.norm(new - old) / np.linalg.norm(old)


def by_counts(make, counts):
    """The same numbers of weights, each a layer's own."""
    sites = counts.items()
    return {f"^{path}$": make(nt.Sparsity(1 - n / size)) for path, (n, size) in sites}


def counts_of(report):
    return {site.path: (int(site.nonzeros), site.size) for site in report.sites}


MAKES = only_fast([nt.Wanda], [nt.Wanda, nt.SparseGPT, nt.LayerOBS, nt.Reconstruct])


@pytest.mark.parametrize("make", MAKES)
def test_split_is_exact_and_better_than_the_same_share(make):
    params, x = network()
    pruned = nt.prune(params, apply_fn, x, method=make(MIXED))
    report, split = pruned.report, pruned.report.split
    left, want = nonzeros(report)
    assert left == want
    assert all(site.nonzeros > 0 for site in report.sites)
    # what carries little keeps little
    shares = {site.path: float(site.sparsity) for site in report.sites}
    assert shares["side/w"] == max(shares.values()) > 0.7
    assert split.deviation < 0.8 * split.equal
    text = str(report)
    assert re.search(r"shares per layer: .* on rows that chose nothing", text)
    assert max(map(len, text.splitlines())) <= 100
    data = json.loads(json.dumps(report.to_dict()))["split"]
    assert data["tried"] == split.tried > 10


@pytest.mark.parametrize("make", MAKES)
def test_split_is_measured_on_rows_apart(make):
    """Its figures are those of networks solved on half of the rows."""
    params, x = network()
    report = nt.prune(params, apply_fn, x, method=make(MIXED)).report
    dealt = dealing.deal(x, None, jax.random.key(0), folds=1)
    sizes = [site.size for site in report.sites]
    even = splitting.evenly(sizes, nonzeros(report)[1])
    counts = counts_of(report)
    same = {path: (n, counts[path][1]) for path, n in zip(counts, even, strict=True)}
    for mine, want in ((counts, report.split.deviation), (same, report.split.equal)):
        method = by_counts(make, mine)
        half = nt.prune(params, apply_fn, dealt.solve, method=method)
        got = deviation(params, half.params, dealt.check)
        assert got == pytest.approx(float(want), rel=1e-4)


@slow
def test_the_network_itself_is_solved_on_all_rows():
    params, x = network()
    pruned = nt.prune(params, apply_fn, x, method=nt.SparseGPT(MIXED))
    method = by_counts(nt.SparseGPT, counts_of(pruned.report))
    whole = nt.prune(params, apply_fn, x, method=method)
    for one, two in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(pruned.params), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_where_the_same_share_is_better_it_is_kept(monkeypatch):
    params, x = network()
    monkeypatch.setattr(splitting, "split", lambda curves, total: [26, 70, 96])
    report = nt.prune(params, apply_fn, x, method=nt.Wanda(MIXED)).report
    left, want = nonzeros(report)
    assert left == want
    sizes = [site.size for site in report.sites]
    got = [int(site.nonzeros) for site in report.sites]
    assert got == splitting.evenly(sizes, want)
    assert report.split.equal < report.split.deviation
    assert "the same share in every layer" in str(report)


@slow
def test_a_bare_pattern_is_reconstructed():
    params, x = network()
    bare = nt.prune(params, apply_fn, x, method=MIXED)
    named = nt.prune(params, apply_fn, x, method=nt.Reconstruct(MIXED))
    for one, two in zip(
        jax.tree.leaves(bare.params), jax.tree.leaves(named.params), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    left, want = nonzeros(bare.report)
    assert left == want and bare.report.split is not None


@slow
@pytest.mark.parametrize("level", [0.0, 0.3, 0.5, 0.8, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("mode", ["parallel", "cascade"])
@pytest.mark.parametrize("make", [nt.SparseGPT, nt.Reconstruct])
def test_levels_and_modes(level, mode, make):
    params, x = network()
    method = make(nt.Sparsity(level, scope="network"))
    report = nt.prune(params, apply_fn, x, method=method, mode=mode).report
    assert int(report.nonzeros) == report.size - round(level * report.size)
    assert min(report.split.deviation, report.split.equal) <= report.split.equal
    parallel = nt.prune(params, apply_fn, x, method=method).report
    assert counts_of(report) == counts_of(parallel)


@slow
@pytest.mark.parametrize("make", [nt.Wanda, nt.Reconstruct])
@pytest.mark.parametrize("name", models.MODELS)
def test_the_number_is_exact_in_every_network(name, make):
    model = models.get(name)
    method = make(MIXED)
    try:
        pruned = nt.prune(model.params, model.apply_fn, model.batch, method=method)
    except (ApplyFnError, BatchError, MethodError) as error:
        # a batch that cannot be dealt out along its leading axis
        assert re.search(
            "must share|at least 4|batch of shapes|zero or not floating", str(error)
        )
        pytest.skip(str(error))
    left, want = nonzeros(pruned.report)
    assert left == want


def test_a_budget_for_each_method_of_a_dict():
    params, x = network()
    other = nt.Wanda(nt.Sparsity(0.3, scope="network"))
    method = {"in|out": nt.Wanda(MIXED), "side": other}
    sites = nt.prune(params, apply_fn, x, method=method).report.sites
    left = {site.path: int(site.nonzeros) for site in sites}
    assert left["in/w"] + left["out/w"] == 288 - round(0.6 * 288)
    assert left["side/w"] == 192 - round(0.3 * 192)
    listing = nt.sites(params, apply_fn, x, method=method)
    assert [site.path for site in listing.sites] == [site.path for site in sites]


@slow
def test_equal_methods_share_and_others_are_pruned_first():
    params, x = network()
    method = {"in": nt.Wanda(MIXED), "out": nt.Wanda(MIXED), "side": nt.NetTrim(0.3)}
    pruned = nt.prune(params, apply_fn, x, method=method)
    left = {site.path: int(site.nonzeros) for site in pruned.report.sites}
    assert left["in/w"] + left["out/w"] == 288 - round(0.6 * 288)
    whole = nt.prune(params, apply_fn, x, method={"side": nt.NetTrim(0.3)})
    np.testing.assert_array_equal(pruned.params["side"]["w"], whole.params["side"]["w"])


@slow
def test_a_loader_is_read_once():
    params, x = network()
    parts = iter(np.split(np.asarray(x), 8))
    pruned = nt.prune(params, apply_fn, parts, method=nt.Wanda(MIXED))
    left, want = nonzeros(pruned.report)
    assert left == want
    assert pruned.report.sites[0].shape[1] + 40 == 400


@slow
def test_steps_of_a_loop_are_measured_apart():
    scales = jnp.asarray([1, 0.02], "float32")[:, None, None]
    W = models.normal(2, 8, 8) * scales
    x = models.data(200, 8)

    def looped(W, x):
        def step(h, w):
            return h + jax.nn.relu(h @ w), None

        return jax.lax.scan(step, x, W)[0]

    new = np.asarray(nt.prune(W, looped, x, method=nt.Wanda(MIXED)).params)
    counts = (new != 0).sum((1, 2))
    assert counts.sum() == 128 - round(0.6 * 128)
    assert counts[0] > 2 * counts[1]


@slow
def test_what_is_not_finite_is_no_answer():
    x = models.data(80, 8)
    twice = jnp.concatenate([x, x], axis=1)
    bare = nt.SparseGPT(MIXED, damping=0.0)
    with pytest.raises(SolveError, match="of SparseGPT. the inputs"):
        nt.prune(models.normal(16, 4), lambda w, x: x @ w, twice, method=bare)


# ---- refusals


def test_no_search_under_a_trace():
    params, x = network()

    def prune(params):
        return nt.prune(params, apply_fn, x, method=nt.Wanda(MIXED)).params

    with pytest.raises(MethodError, match="scope='network'.*concrete.*scope='layer'"):
        jax.jit(prune)(params)


def test_two_searches_at_once():
    params, x = network()
    method = {"in": nt.Wanda(MIXED), ".*": nt.NetTrim(deviation=0.1)}
    with pytest.raises(MethodError, match="expected one search"):
        nt.prune(params, apply_fn, x, method=method)


def test_too_few_rows_and_nothing_to_measure():
    params, x = network()
    with pytest.raises(BatchError, match="3 rows; a budget needs at least 4"):
        nt.prune(params, apply_fn, x[:3], method=nt.Wanda(MIXED))
    with pytest.raises(MethodError, match="scope='network': .* zero or not floating"):
        nt.prune(params, lambda p, x: 0 * apply_fn(p, x), x, method=nt.Wanda(MIXED))
