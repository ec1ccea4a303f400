"""The plot of groups of units: what is drawn is what was taken."""

import dataclasses

import jax
import matplotlib
import numpy as np
import pytest
import structures
from marks import slow

import nettrim_jax as nt
from nettrim_jax import _drawing
from nettrim_jax.results import PlotError

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402

NET = structures.get("conv-flatten")
FOUND = nt.units(NET.params, NET.apply_fn, NET.batch)
REMOVE = {"a": [0, 1, 5], "c": [6]}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def marks(ax):
    """Per look of a mark, where it is: colour, marker, filled or not."""
    out = {}
    for line in ax.lines:
        face = to_hex(line.get_markerfacecolor()) == to_hex("white")
        look = to_hex(line.get_color()), line.get_marker(), not face
        for x, y in np.transpose(line.get_data()):
            out.setdefault(look, []).append((int(x), int(y)))
    return out


def spans(ax):
    """From where to where the lines of removed units go, by row."""
    [lines] = ax.collections
    return {
        int(a[1]): tuple(sorted((int(a[0]), int(b[0]))))
        for a, b in lines.get_segments()
    }


BLUE, BLACK, GREY = (
    to_hex(colour) for colour in (_drawing.BLUE, _drawing.BLACK, _drawing.GREY)
)


def test_the_groups_of_a_network():
    ax = nt.plots.structure(FOUND)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [group.name for group in FOUND.groups] == ["a", "b", "c"]
    assert marks(ax) == {
        (BLUE, "s", True): [(6, 0), (4, 1)],
        (BLUE, "o", True): [(7, 2)],
    }
    assert not ax.collections
    assert ax.get_title() == "17 units in 3 groups"
    assert [text.get_text() for text in ax.texts] == ["6", "4", "7"]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["channel", "neuron"]
    top, bottom = ax.get_ylim()[::-1]
    assert top < bottom, "the first group stands on top"


def test_what_shrink_took():
    small = nt.shrink(NET.params, NET.apply_fn, NET.batch, REMOVE)
    ax = nt.plots.structure(small)
    assert marks(ax) == {
        (BLUE, "s", True): [(3, 0), (4, 1)],
        (BLACK, "s", False): [(6, 0), (4, 1)],
        (BLUE, "o", True): [(6, 2)],
        (BLACK, "o", False): [(7, 2)],
    }
    assert spans(ax) == {0: (3, 6), 1: (4, 4), 2: (6, 7)}
    assert ax.get_title() == "13 of 17 units left (76.5 %)"
    assert [text.get_text() for text in ax.texts] == ["3 of 6", "4 of 4", "6 of 7"]


def test_what_every_round_took():
    method = {"c": nt.Magnitude(nt.Neurons(0.3)), ".*": None}
    trimmed = nt.trim(NET.params, NET.apply_fn, NET.batch, method, until=3)
    left = [one.units["c"] for one in trimmed.rounds]
    assert left == sorted(left, reverse=True) and left[0] < 7
    ax = nt.plots.structure(trimmed)
    assert marks(ax)[BLUE, "o", True] == [(left[-1], 2)]
    ticks = [x for x, y in marks(ax)[GREY, "|", True] if y == 2]
    assert ticks == left[:-1]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["channel", "neuron", "left", "before", "removed", "by round"]
    nothing = nt.trim(NET.params, NET.apply_fn, NET.batch, method, until=0)
    assert nt.plots.structure(nothing).get_title() == "17 of 17 units left (100.0 %)"


def many(count):
    """Groups of sizes from 4 to 4096."""
    groups = [
        dataclasses.replace(
            FOUND.groups[0], name=f"layer_{k:03d}/kernel", count=4 ** (1 + k % 6)
        )
        for k in range(count)
    ]
    return dataclasses.replace(FOUND, groups=tuple(groups))


@slow
@pytest.mark.parametrize("count", [130, 400])
def test_some_hundred_groups_are_readable(count):
    ax = nt.plots.structure(many(count))
    assert ax.get_xscale() == "log"
    assert ax.figure.get_figheight() <= 42
    ax.figure.canvas.draw()
    labels = [a for a in ax.get_yticklabels() if a.get_text()]
    assert len(labels) >= 130 and min(a.get_fontsize() for a in labels) >= 5
    boxes = [a.get_window_extent() for a in labels]
    overlaps = [a.y0 - b.y1 for a, b in zip(boxes, boxes[1:], strict=False)]
    assert min(overlaps) > -2  # pixels
    ticks = [a.get_text() for a in ax.get_xticklabels()]
    assert "1,024" in ticks and all("." not in text for text in ticks)
    right = ax.get_window_extent().x1
    assert all(a.get_window_extent().x1 <= right for a in ax.texts)


@pytest.mark.parametrize("size", [2, 200])
def test_axes_of_any_size_will_do(size):
    _, ax = plt.subplots(figsize=(4, size / 10))
    assert nt.plots.structure(many(60), ax=ax) is ax
    assert len(plt.get_fignums()) == 1


def test_refusals():
    with pytest.raises(
        PlotError, match="nettrim_jax.units, shrink or trim returns, go"
    ):
        nt.plots.structure(NET.params)
    shape = jax.ShapeDtypeStruct((3, 4), "float32")
    alone = nt.units({"w": shape}, lambda p, x: x @ p["w"], np.ones((2, 3), "f"))
    with pytest.raises(PlotError, match="has no group of units that can be removed"):
        nt.plots.structure(alone)
    assert not plt.get_fignums()
