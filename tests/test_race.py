"""The race of all methods: what it measures, and that the page shows what it found."""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def race(monkeypatch):
    """Its modules by name."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    return lambda name: __import__(f"race_{name}")


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="no docs beside the tests")
def test_the_page_shows_the_file(race):
    data = json.loads((ROOT / "docs" / "race.json").read_text())
    page = (ROOT / "docs" / "race.md").read_text()
    assert race("tables").fill(page, data) == page
    shown = race("tables").tables(data)
    missing = [name for name in shown if f"<!-- race: {name} -->" not in page]
    assert not missing


def found(held_out, score=None):
    return {
        "seconds": 1.0,
        "memory": 1,
        "calibration": [0.1] * len(held_out),
        "held_out": held_out,
        "score": score,
    }


def toy(ours, other, target):
    return {
        "layers": ["a", "b"],
        "shapes": [[1, 4, 4]] * 2,
        "rows": 9,
        "last": "b",
        "measure": "accuracy",
        "trained": 99.0,
        "methods": {
            "sparsegpt": {"runs": {f"parallel {target}": found(other, 90.0)}},
            "reconstruct": {"runs": {f"parallel {target}": found(ours, 95.0)}},
        },
    }


def test_what_was_recovered_has_a_table_and_a_line(race, tmp_path):
    pytest.importorskip("matplotlib")
    case = toy([0.3, 9.0], [0.6, 1.0], "90 %")
    data = {"cases": {"lenet": case}}
    assert "recovered" not in race("tables").tables(data)
    race("picture").draw(data, tmp_path / "without.png")
    case["recovered"] = {"90 %": [94.0, 96.5, 98.3], "50 %": [98.0, 98.1, 98.3]}
    table = race("tables").tables(data)["recovered"].splitlines()
    assert table[2:] == [
        "| lenet | 50 % | 98.00 | 98.10 | 98.30 |",
        "| lenet | 90 % | 94.00 | 96.50 | 98.30 |",
    ]
    race("picture").draw(data, tmp_path / "with.png")
    sizes = [(tmp_path / f"{name}.png").stat().st_size for name in ("without", "with")]
    assert sizes[0] < sizes[1]


def test_tables_compare(race):
    tables = race("tables")
    data = {
        "cases": {
            "lenet": toy([0.3, 9.0], [0.6, 1.0], "90 %"),
            "resnet": toy([0.2, 0.3], [0.1, 0.4], "50 %"),
        }
    }
    # the last layer at 90 % is the one at 70 %
    assert [e[:3] for e in tables.entries(data)] == [
        ("lenet", "a", "90 %"),
        ("resnet", "a", "50 %"),
        ("resnet", "b", "50 %"),
    ]
    made = tables.tables(data)
    assert "| parallel | 90 % | 90.00 | **95.00** |" in made["score lenet"]
    assert made["losses"].splitlines()[2:] == [
        "| parallel | resnet a | 50 % | 0.2000 | 0.1000 (SparseGPT) |"
    ]
    first = made["summary"].splitlines()[2]
    assert first.startswith("| parallel | 90 % and above | SparseGPT | 1 | 0.500 |")
    assert "| 3 | 0.750 | 2.000 (resnet a 50 %) | 1 |" in made["summary"]
    page = "a\n<!-- race: losses -->\nold\n<!-- end -->\nb"
    filled = tables.fill(page, data)
    assert made["losses"] in filled and "old" not in filled
    assert tables.fill(filled, data) == filled
    assert json.loads(tables.dumps(data)) == data


def test_layers_alone_are_beside_exact_removals(race):
    tables = race("tables")
    case = toy([0.3, 9.0], [0.6, 1.0], "50 %")
    data = {"cases": {"lenet": case}}
    assert "alone" not in tables.tables(data)
    runs = {tables.ALONE: [0.2, 0.9], tables.OBS: [0.4, 2.0], tables.UNDAMPED: [0.5, 1]}
    for method, errors in runs.items():
        case["methods"][method] = {"runs": {"parallel 50 %": found(errors)}}
    made = tables.tables(data)
    assert made["alone"].splitlines()[2:] == [
        "| lenet | 2 | 0.700 | 0.900 (b 50 %) | 0 |"
    ]
    # they have no columns of their own
    assert "downstream" not in made["errors lenet"]
    assert "LayerOBS |" in made["errors lenet"].splitlines()[0]


def test_compilation_counts_every_second_once(race):
    compilation = race("meters").Compilation()
    now = time.perf_counter()
    compilation.spans = [
        (now + a, now + b) for a, b in ((1, 2), (1, 5), (4, 6), (8, 9))
    ]
    assert compilation.since(now) == pytest.approx(6)
    assert compilation.since(now + 4.5) == pytest.approx(2.5)


@slow
def test_errors_are_those_of_the_layers(race):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape)  # noqa: E731
    old = {"b": draw(5), "w": draw(6, 5), "z": draw(5, 4)}
    new = {"b": draw(5), "w": draw(6, 5), "z": draw(5, 4)}
    x = draw(40, 6)

    def apply_fn(params, x):
        return jax.nn.relu(x @ params["w"] + params["b"][None]) @ params["z"]

    case = race("cases").Case(
        jax.tree.map(jnp.asarray, old), apply_fn, None, jnp.asarray(x), 40, 40
    )
    errors = race("meters").Errors(case)

    def apart(a, b):
        return np.linalg.norm(a - b) / np.linalg.norm(b)

    hidden, moved = (np.maximum(x @ p["w"] + p["b"], 0) for p in (old, new))
    first = apart(moved, hidden)
    alone = apart(hidden @ new["z"], hidden @ old["z"])
    fed = apart(moved @ new["z"], hidden @ old["z"])
    assert errors.of(new, "parallel") == pytest.approx([first, alone])
    assert errors.of(new, "cascade") == pytest.approx([first, fed])


def test_a_run_of_a_small_layer(race):
    asked = [("parallel", "2:4")]
    case, record = race("runs").runs("random 512 relu", "magnitude", asked, True)
    [[_, d_in, d_out]] = case["shapes"]
    assert case["relu"] == [True] and case["last"] is None
    assert record["nonzeros"] == [d_in * d_out // 2]
    assert 0 < record["calibration"][0] < 1 and 0 < record["held_out"][0] < 1


def test_the_picture_is_drawn(race, tmp_path):
    pytest.importorskip("matplotlib")
    data = {"cases": {"lenet": toy([0.3, 9.0], [0.6, 1.0], "90 %")}}
    race("picture").draw(data, tmp_path / "race.png")
    assert (tmp_path / "race.png").stat().st_size > 10000


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="no docs beside the tests")
def test_the_picture_of_the_readme_is_what_the_file_says(race, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    data = json.loads((ROOT / "docs" / "race.json").read_text())
    race("picture").draw_short(data, tmp_path / "accuracy.png")
    drawn, kept = (
        image.imread(folder / "accuracy.png")
        for folder in (tmp_path, ROOT / "docs" / "figures")
    )
    assert drawn.shape == kept.shape
    # another version of matplotlib draws letters otherwise, but not the lines
    assert np.mean(np.abs(drawn - kept).max(axis=2) > 0.5) < 0.02
