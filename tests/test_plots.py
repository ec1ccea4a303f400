"""Pictures: what is drawn is what was given, labelled, and readable in grey."""

import dataclasses
import functools
import itertools
import sys

import helpers
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax import _drawing
from nettrim_jax.report import Report, SiteReport
from nettrim_jax.results import CONVERGED, MAX_STEPS, NAN, PlotError

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402

BEFORE = np.random.default_rng(0).normal(size=(12, 7))
BEFORE[0] = 0
AFTER = np.where(np.abs(BEFORE) > 1, 1.1 * BEFORE, 0)
AFTER[0, :2] = 0.3
PROGRAM = "tall-white-relu-fixed-0.02"
CONFIG = nt.ADMM(tol=1e-5, max_steps=2000)


def report(held_out=(0.06, 0.02, 0.3)):
    """A report of three layers."""
    fields = {
        "live_inputs": 9,
        "bare_units": 0,
        "bare_inputs": 0,
        "result": 0,
        "steps": 20,
        "gap": 1e-4,
        "violation": 0.0,
        "downstream": 0.0,
    }
    names, nonzeros, errors = ("a", "b/w", "c"), (50, 9, 0), (0.05, 0.021, 0.2)
    sites = [
        SiteReport(
            name, "dense", "relu", (1, 60, 20, 5), 100, n, 0.1, error, unseen, **fields
        )
        for name, n, error, unseen in zip(
            names, nonzeros, errors, held_out, strict=True
        )
    ]
    numbers = [jax.tree.map(jnp.asarray, site) for site in sites]
    return Report(tuple(numbers), (), jnp.asarray(0.2))


@functools.cache
def program():
    return helpers.program(helpers.problem(PROGRAM), "float64")


@functools.cache
def found():
    epsilon = float(program().response.epsilon)
    return nt.path(program(), epsilon * jnp.asarray([9.0, 1.0, 3.0]))


def bounded(bound, deviation):
    return Report((), (), jnp.asarray(deviation), bound=jnp.asarray(bound))


@functools.cache
def trimmed():
    params = {"a": BEFORE, "b": np.ones((7, 3))}
    half = {"a": nt.Magnitude(nt.Neurons(0.3)), "b": None}

    def apply_fn(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    return nt.trim(params, apply_fn, np.ones((4, 12)), half, until=2)


DRAW = {
    "links": lambda **k: nt.plots.links(BEFORE, AFTER, **k),
    "weights": lambda **k: nt.plots.weights(BEFORE, AFTER, **k),
    "sites": lambda **k: nt.plots.sites(report(), **k),
    "path": lambda **k: nt.plots.path(found(), **k),
    "convergence": lambda **k: nt.plots.convergence(program(), CONFIG, **k),
    "bound": lambda **k: nt.plots.bound([bounded(2.0, 0.5)], **k),
    "structure": lambda **k: nt.plots.structure(trimmed(), **k),
}
pictures = pytest.mark.parametrize("name", DRAW)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def lines(ax):
    """Data by label, of all axes of the figure."""
    all_lines = (line for a in ax.figure.axes for line in a.lines)
    return {line.get_label(): np.asarray(line.get_data()) for line in all_lines}


# ---- what is drawn


@pytest.mark.parametrize("as_mask", [False, True])
def test_links(as_mask):
    ax = nt.plots.links(jnp.asarray(BEFORE), AFTER != 0 if as_mask else AFTER)
    kind = np.asarray(ax.images[0].get_array()).T
    np.testing.assert_array_equal(kind == 3, (BEFORE != 0) & (AFTER != 0))
    np.testing.assert_array_equal(kind == 1, (BEFORE != 0) & (AFTER == 0))
    np.testing.assert_array_equal(kind == 2, (BEFORE == 0) & (AFTER != 0))
    left = ((BEFORE != 0) & (AFTER != 0)).sum()
    share = f"{100 * left / 77:.1f} %"
    assert ax.get_title() == f"{left} of 77 links left ({share}), 2 new"
    colours = ax.images[0].cmap(ax.images[0].norm([0, 1, 2, 3]))
    for value, patch in zip((3, 1, 2), ax.get_legend().get_patches(), strict=True):
        assert tuple(colours[value]) == patch.get_facecolor()


def test_links_of_a_layer_larger_than_the_picture(rng):
    W = rng.normal(size=(1500, 1000)).astype("float32")
    ax = nt.plots.links(W, W * (rng.random(W.shape) < 0.5))
    ax.figure.canvas.draw()
    box = ax.get_window_extent()
    pixels = np.asarray(ax.figure.canvas.buffer_rgba())[::-1]
    inside = pixels[
        int(box.y0) + 3 : int(box.y1) - 3, int(box.x0) + 3 : int(box.x1) - 3
    ]
    ends = np.asarray([to_rgb(_drawing.PALE), to_rgb(_drawing.BLACK)])
    # half are black, so a dot is half as light as the paler of the two
    np.testing.assert_allclose(
        inside[..., :3].mean((0, 1)) / 255, ends.mean(0), atol=0.05
    )


def test_weights():
    after = AFTER.astype("float32")
    ax = nt.plots.weights(BEFORE, jnp.asarray(after), bins=9)
    for patch, W in zip(ax.patches, (BEFORE, after.astype(float)), strict=True):
        counts, edges, _ = patch.get_data()
        expected = np.histogram(W[W != 0], edges)[0]
        np.testing.assert_array_equal(counts, expected)
        assert counts.sum() == (W != 0).sum() and len(counts) == 9
        assert f"{counts.sum()} not zero" in patch.get_label()
    stems = lines(ax)
    for name, W in (("before", BEFORE), ("after", AFTER)):
        zeros = (W == 0).sum()
        x, y = stems[f"{name}: {zeros} exact zeros"]
        assert x.tolist() == [0, 0] and y[1] == zeros
    assert ax.get_yscale() == "log"


def test_weights_without_zeros_or_without_others():
    assert not nt.plots.weights(np.ones(3), np.ones(3)).lines
    assert len(nt.plots.weights(np.zeros(3), np.zeros(3)).lines) == 2


def test_sites():
    ax, sites = nt.plots.sites(report()), report().sites
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b/w", "c"]
    widths = [bar.get_width() for bar in ax.patches]
    np.testing.assert_allclose(widths, [100 * float(s.sparsity) for s in sites])
    drawn = lines(ax)
    for label, name in (("error", "error"), ("held-out error", "held_out_error")):
        values = [100 * float(getattr(s, name)) for s in sites]
        np.testing.assert_allclose(drawn[label][0], values)
        assert ax.figure.axes[1].get_xlim()[1] > max(values)
    top, bottom = ax.get_ylim()[::-1]
    assert top < bottom, "the first layer stands on top"


def test_sites_without_held_out_rows():
    ax = nt.plots.sites(report([np.nan] * 3))
    assert list(lines(ax)) == ["error"]


def test_sites_of_a_pruning():
    params = {"w": BEFORE.astype("float32")}
    x = np.random.default_rng(1).normal(size=(60, 12)).astype("float32")
    method = nt.Magnitude(nt.Sparsity(0.5))
    pruned = nt.prune(params, lambda params, x: x @ params["w"], x, method=method)
    ax = nt.plots.sites(pruned.report)
    assert ax.patches[0].get_width() == pytest.approx(50)
    assert lines(ax)["error"][0][0] == 100 * float(pruned.report.sites[0].error) > 0


def test_path():
    drawn = lines(nt.plots.path(found()))
    order = np.argsort(found().epsilons)
    for label, values in (
        ("sparsity", 100 * found().sparsity),
        ("penalty", found().solutions.stats.objective),
    ):
        np.testing.assert_allclose(drawn[label][0], np.asarray(found().epsilons)[order])
        np.testing.assert_allclose(drawn[label][1], np.asarray(values)[order])
    assert "not converged" not in drawn


@pytest.mark.parametrize("least, most", [(1, 1.5), (1.3, 53), (0.02, 9), (1e-6, 90)])
def test_budgets_of_a_path_can_be_read(least, most):
    epsilons = jnp.geomspace(most, least, 3)
    ax = nt.plots.path(found()._replace(epsilons=epsilons))
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    ticks = [*ax.xaxis.get_major_ticks(), *ax.xaxis.get_minor_ticks()]
    shown = [
        tick.label1.get_window_extent()
        for tick in ticks
        if tick.label1.get_text() and low <= tick.get_loc() <= high
    ]
    shown.sort(key=lambda box: box.x0)
    assert shown
    for left, right in itertools.pairwise(shown):
        assert left.x1 < right.x0


def test_a_path_that_did_not_converge():
    codes = jnp.asarray([CONVERGED, MAX_STEPS, NAN], jnp.int32)
    W = found().solutions.W.at[2].set(jnp.nan)
    solutions = found().solutions._replace(result=codes, W=W)
    zero = found().epsilons.at[1].set(0.0)
    ax = nt.plots.path(found()._replace(solutions=solutions, epsilons=zero))
    drawn = lines(ax)
    assert drawn["not converged"][0].tolist() == [0.0] and ax.get_xscale() == "linear"
    gone = np.isnan(drawn["sparsity"][1]), np.isnan(drawn["penalty"][1])
    np.testing.assert_array_equal(gone, [[False, True, False]] * 2)


def test_convergence():
    drawn = lines(nt.plots.convergence(program(), CONFIG))
    solution = nt.solve(program(), CONFIG)
    steps = int(solution.stats.steps)
    for label, last in (
        ("gap", solution.certificate.gap),
        ("violation", solution.certificate.violation),
    ):
        x, y = drawn[label]
        assert x.tolist() == list(range(20, steps + 1, 20))
        assert y[-1] == float(last) <= 1e-5
    assert drawn["gap"][1][-2] > 1e-5 or drawn["violation"][1][-2] > 1e-5
    assert set(drawn["tolerance"][1]) == {1e-5}


def test_zeros_are_left_out_of_a_log_axis(monkeypatch):
    values = jnp.asarray([1.0, 0.0, jnp.nan])
    seen = nt.History(jnp.asarray([20, 40, 60]), *[values] * 3, 1e-9 * values)
    monkeypatch.setattr(nt.plots, "history", lambda program, config: seen)
    ax = nt.plots.convergence(program(), CONFIG)
    ax.figure.canvas.draw()
    for label, first in (("gap", 1), ("violation", 1e-9)):
        np.testing.assert_array_equal(lines(ax)[label], [[20, 40], [first, np.nan]])
    assert ax.get_ylim()[0] == CONFIG.tol / 100


def test_bound():
    given = [bounded(2.0, 0.5), bounded(np.nan, 0.1), bounded(7.0, 0.3)]
    drawn = lines(nt.plots.bound(given))
    marks = drawn["report (1 of 3 without a mark)"]
    np.testing.assert_array_equal(marks, [[2.0, 7.0], [0.5, 0.3]])
    x, y = drawn["deviation = bound"]
    np.testing.assert_array_equal(x, y)
    assert "report" in lines(nt.plots.bound(bounded(jnp.asarray(2.0), 0.5)))


# ---- the record of a solve


@pytest.mark.parametrize("max_steps", only_fast([2000], [20, 90, 2000]))
@pytest.mark.parametrize("shorter", only_fast([False], [False, True]))
def test_history_takes_the_steps_of_solve(max_steps, shorter):
    config = dataclasses.replace(CONFIG, max_steps=max_steps)
    seen = nt.history(program(), config)
    assert seen.steps.tolist() == list(range(20, max_steps + 20, 20))
    looks = int(np.isfinite(seen.gap).sum())
    for at in {0, looks // 2, looks - 2} - {-1} if shorter else {looks - 1}:
        stop = {"max_steps": 20 * (at + 1)} if shorter else {}
        alone = nt.solve(program(), dataclasses.replace(config, **stop))
        expected = (alone.stats.objective, *alone.certificate)
        got = [a[at] for a in (seen.objective, seen.lower_bound, seen.gap)]
        # the certificate has its gap first
        np.testing.assert_allclose(got, [expected[0], expected[2], expected[1]])
        np.testing.assert_allclose(seen.violation[at], expected[3])
    for values in seen[1:]:
        assert np.isnan(values[looks:]).all()


@slow
def test_history_under_vmap_and_from_a_start():
    other = helpers.with_epsilon(program(), 3 * program().response.epsilon)
    stack = jax.tree.map(lambda *a: jnp.stack(a), program(), other)
    config = nt.ADMM(max_steps=200)
    both = jax.vmap(lambda p: nt.history(p, config))(stack)
    for lane, one in enumerate((program(), other)):
        alone = nt.history(one, config)
        np.testing.assert_allclose(both.gap[lane], alone.gap, rtol=1e-6)
    again = nt.history(program(), config, nt.solve(program(), config))
    assert np.isfinite(again.gap).sum() == 1


# ---- every picture


@pictures
def test_axes_are_honoured_and_labelled(name):
    figure, (here, there) = plt.subplots(1, 2)
    assert DRAW[name](ax=here) is here
    assert not (there.lines or there.patches or there.images)
    assert plt.get_fignums() == [figure.number]
    for ax in (here, DRAW[name]()):
        assert ax.get_xlabel() and ax.get_ylabel() or name == "sites"
        labels = [a.get_xlabel() + a.get_ylabel() for a in ax.figure.axes if a != there]
        assert all(labels)
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert texts and not any(text.startswith("_") for text in texts)
        sizes = [text.get_fontsize() for text in ax.get_legend().get_texts()]
        assert min(*sizes, ax.xaxis.label.get_fontsize()) >= 9


def lightness(colour):
    """CIE 1976 L*, from 0 to 100."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour
    ]
    Y = np.dot([0.2126, 0.7152, 0.0722], linear)
    return 116 * Y ** (1 / 3) - 16 if Y > 0.008856 else 903.3 * Y


@pictures
def test_readable_in_grey(name):
    looks = []
    for ax in DRAW[name]().figure.axes:
        for line in ax.lines:
            face = line.get_markerfacecolor()
            shape = (line.get_marker(), line.get_linestyle(), str(face) == "none")
            looks.append(("line", *shape, lightness(to_rgb(line.get_color()))))
        if name in ("weights", "links"):
            handles = ax.get_legend().get_patches()
            for patch in handles:
                colour = patch.get_facecolor() if patch.get_fill() else "none"
                colour = patch.get_edgecolor() if colour == "none" else colour
                looks.append(("patch", "", "", True, lightness(to_rgb(colour))))
    for one, other in itertools.combinations(looks, 2):
        assert one[:4] != other[:4] or abs(one[4] - other[4]) >= 15, (one, other)


# ---- refusals

X = {
    "shapes": (
        lambda: nt.plots.links(BEFORE, AFTER[1:]),
        r"one shape, got \[12, 7\] and",
    ),
    "dimensions": (
        lambda: nt.plots.links(BEFORE[0], AFTER[0]),
        r"expected matrices \[d_in, d_out\], got shape \[7\]; fold",
    ),
    "integers": (
        lambda: nt.plots.links(np.ones((2, 2), int), AFTER),
        "before to be an",
    ),
    "no array": (lambda: nt.plots.weights(BEFORE, {}), "after to be an array of float"),
    "list": (lambda: nt.plots.weights(BEFORE, [[1.0]]), "or a mask, got list; give"),
    "nan": (lambda: nt.plots.weights(BEFORE, BEFORE * np.nan), "after has NaN"),
    "empty": (lambda: nt.plots.weights(BEFORE[:0], BEFORE[:0]), "before has no entry"),
    "bins": (lambda: nt.plots.weights(BEFORE, AFTER, bins=0), r"bins=0\): expected"),
    "axes": (
        lambda: nt.plots.links(BEFORE, AFTER, ax=3),
        "of matplotlib's Axes, got int",
    ),
    "report": (lambda: nt.plots.sites(3), "expected a report, got int; give"),
    "no layer": (lambda: nt.plots.sites(bounded(1.0, 1.0)), "report has no layer"),
    "path": (lambda: nt.plots.path(report()), "expected a path, got Report; make one"),
    "bound": (lambda: nt.plots.bound([report(), None]), "a report, got NoneType"),
    "bounds": (lambda: nt.plots.bound(4), "bound: expected a report, got int"),
    "no bound": (
        lambda: nt.plots.bound([bounded(np.nan, 1.0)]),
        "none of 1 reports has",
    ),
    "no report": (lambda: nt.plots.bound([]), "none of 0 reports has"),
    "mapped": (
        lambda: nt.plots.sites(jax.tree.map(lambda a: jnp.stack([a, a]), report())),
        r"report of one network, got arrays of shape \[2\]; take one",
    ),
    "mapped path": (
        lambda: nt.plots.path(jax.tree.map(lambda a: jnp.stack([a, a]), found())),
        r"path of one program, got budgets of shape \[2, 3\]; take one",
    ),
    "nan program": (
        lambda: nt.plots.convergence(helpers.with_epsilon(program(), jnp.nan), CONFIG),
        "met a NaN or overflow before its first look",
    ),
}


@pytest.mark.parametrize("case", X)
def test_refusals(case):
    call, says = X[case]
    with pytest.raises(PlotError, match=says):
        call()
    assert not plt.get_fignums(), "no empty figure is left"


@pytest.mark.parametrize(
    "draw, value",
    [
        (nt.plots.sites, report),
        (nt.plots.bound, report),
        (nt.plots.path, found),
        (nt.plots.convergence, program),
        (lambda W: nt.plots.links(W, W), lambda: jnp.asarray(BEFORE)),
        (lambda W: nt.plots.weights(W, W), lambda: jnp.asarray(BEFORE)),
    ],
)
def test_nothing_is_drawn_under_a_trace(draw, value):
    with pytest.raises(PlotError, match="values are being traced; draw outside of jax"):
        jax.jit(lambda v: draw(v) and 0)(value())


def test_what_solve_refuses():
    with pytest.raises(nt.NetTrimError, match="expected a program, got int"):
        nt.plots.convergence(3)
    with pytest.raises(nt.NetTrimError, match="solver: expected an ADMM"):
        nt.plots.convergence(program(), 3)


@pictures
def test_without_matplotlib(name, monkeypatch):
    report(), found(), trimmed()
    for module in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    match = rf"plots.{name}: matplotlib is not installed; install nettrim-jax\[plots\]"
    with pytest.raises(PlotError, match=match):
        DRAW[name]()
