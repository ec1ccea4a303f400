"""The pictures of the pages, drawn when the pages are built.

Run ``python docs/figures.py FOLDER`` to draw them alone; about 30 s on two cores. The
race is not run anew: its pictures are those of ``race.json``. The one of the README,
``docs/figures/accuracy.png``, is written by ``python docs/figures.py --readme``.
"""

import json
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib

import nettrim_jax as nt

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
import digits  # noqa: E402
import race_picture  # noqa: E402
import smaller  # noqa: E402

NAMES = ("links", "weights", "sites", "path", "convergence", "bound", "structure")


class Net(nn.Module):
    """64-64-64-64-10 with ReLU: layers of one shape compile and solve together."""

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10)(x)


def draw(folder):
    """Trains and prunes a network for digits, and draws it."""
    (x, y), _ = digits.data()
    model = Net()
    params = digits.train(model, x, y, steps=600)
    pruned = nt.prune(params, model.apply, x, method=nt.NetTrim(epsilon=0.1))
    before, after = (p["params"]["Dense_1"]["kernel"] for p in (params, pruned.params))

    first = params["params"]["Dense_0"]
    rows = x[:300]
    Y = jax.nn.relu(rows @ first["kernel"] + first["bias"])
    norm = jnp.linalg.norm(Y)
    program = nt.relu_program(rows, Y, 0.1 * norm, t=first["bias"])
    found = nt.path(program, norm * jnp.geomspace(0.8, 0.02, 10))

    reports = [
        nt.prune(params, model.apply, x, method=nt.NetTrim(epsilon), bound=True).report
        for epsilon in (0.01, 0.03, 0.1, 0.3)
    ]

    cnn = smaller.CNN()
    start = smaller.fit(cnn.init(jax.random.key(0), x[:1]), cnn.apply, x, y, steps=60)
    method = {"Dense_1": None, ".*": nt.Magnitude(nt.Neurons(0.4))}
    trimmed = nt.trim(start, cnn.apply, x, method, until=3)

    pictures = {
        "links": nt.plots.links(before, after),
        "weights": nt.plots.weights(before, after),
        "sites": nt.plots.sites(pruned.report),
        "path": nt.plots.path(found),
        "convergence": nt.plots.convergence(program, nt.ADMM(tol=1e-4)),
        "bound": nt.plots.bound(reports),
        "structure": nt.plots.structure(trimmed),
    }
    folder.mkdir(exist_ok=True, parents=True)
    for name in NAMES:
        pictures[name].figure.savefig(folder / f"{name}.png", dpi=120)
    plt.close("all")


def draw_race(folder):
    """Draws what the race found."""
    folder.mkdir(exist_ok=True, parents=True)
    data = json.loads((ROOT / "docs" / "race.json").read_text())
    race_picture.draw(data, folder / "race.png")


def draw_short_race(path):
    """Draws what the race found, for the README."""
    data = json.loads((ROOT / "docs" / "race.json").read_text())
    race_picture.draw_short(data, path)


def draw_if_older(folder):
    """Draws unless all pictures are newer than everything that they depend on."""
    draw_race(folder)
    made = [folder / f"{name}.png" for name in NAMES]
    sources = [pathlib.Path(__file__), *ROOT.glob("nettrim_jax/**/*.py")]
    sources += [ROOT / "examples" / f"{name}.py" for name in ("digits", "smaller")]
    newest = max(path.stat().st_mtime for path in sources)
    if not all(path.exists() and path.stat().st_mtime >= newest for path in made):
        draw(folder)


if __name__ == "__main__":
    if sys.argv[1] == "--readme":
        draw_short_race(ROOT / "docs" / "figures" / "accuracy.png")
    else:
        draw(pathlib.Path(sys.argv[1]))
        draw_race(pathlib.Path(sys.argv[1]))
