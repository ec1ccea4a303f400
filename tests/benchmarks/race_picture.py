"""Accuracy against sparsity, from what ``race.py`` wrote; no JAX but its colours."""

import matplotlib
import numpy as np
import race_tables

from nettrim_jax._drawing import BLACK, BLUE, GREY, VERMILION

GREEN = "#009E73"

# told apart in grey by lightness, marker and line
STYLES = {
    "random": {"color": GREY, "ls": ":", "marker": "x", "lw": 1.2},
    "magnitude": {"color": GREY, "ls": "-", "marker": "s"},
    "wanda": {"color": BLACK, "ls": "--", "marker": "^"},
    "sparsegpt": {"color": BLUE, "ls": "-.", "marker": "D"},
    "obd": {"color": "#CC79A7", "ls": ":", "marker": "v"},
    "layerobs": {"color": "#E69F00", "ls": "--", "marker": "P"},
    "reconstruct": {"color": VERMILION, "ls": "-", "marker": "o", "lw": 2.2},
}
NAMES = {
    "lenet": "LeNet-300-100, MNIST",
    "resnet": "ResNet-20, CIFAR-10",
    "transformer": "transformer, tinyshakespeare",
}


def draw(data, path):
    """One column per network, one row per mode, all methods in one axes."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [n for n in NAMES if data["cases"].get(n, {}).get("trained") is not None]
    modes = ("parallel", "cascade")
    figure, axes = plt.subplots(
        2,
        len(names),
        figsize=(4.2 * len(names), 6.6),
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey="col",
    )
    for column, name in enumerate(names):
        for row, mode in enumerate(modes):
            one(axes[row, column], data["cases"][name], mode)
            axes[row, column].set_title(f"{NAMES[name]}, {mode}", fontsize=10)
        axes[1, column].set_xlabel("weights removed in each layer, %")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=9, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_short(data, path):
    """The networks side by side in cascade mode, for a page's width."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(NAMES), figsize=(10, 3.6), layout="constrained")
    for ax, (name, title) in zip(axes, NAMES.items(), strict=True):
        one(ax, data["cases"][name], "cascade")
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("weights removed, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def one(ax, case, mode):
    """All methods of a network in one mode."""
    shares = [t for t in race_tables.TARGETS if "%" in t]
    accuracy = case["measure"] == "accuracy"
    ax.axhline(case["trained"], color=GREY, lw=0.8, label="trained")
    for method, style in STYLES.items():
        runs = case["methods"].get(method, {}).get("runs", {})
        points = [
            (float(t[:-2]), runs[f"{mode} {t}"]["score"])
            for t in shares
            if f"{mode} {t}" in runs
        ]
        left, score = np.array(points).reshape(-1, 2).T
        label = race_tables.LABELS[method]
        if len(points):
            ax.plot(100 - left, score, label=label, ms=4, **({"lw": 1.5} | style))
    found = case.get(race_tables.RECOVERED, {}) if mode == "cascade" else {}
    there = [t for t in shares if t in found]
    if there:
        left, score = [float(t[:-2]) for t in there], [found[t][1] for t in there]
        style = {"color": GREEN, "ls": "--", "marker": "v", "ms": 4, "lw": 1.5}
        label = "Reconstruct, recover"
        ax.plot([100 - share for share in left], score, label=label, **style)
    # by what is left, so that the last few per cent have room
    ax.set_xscale("log")
    ax.set_xlim(58, 1.75)
    ticks = [100 - float(t[:-2]) for t in shares]
    ax.set_xticks(ticks, [t[:-2] for t in shares])
    ax.minorticks_off()
    ax.grid(alpha=0.25)
    unit = "test accuracy, %" if accuracy else "test loss, nats a letter"
    ax.set_ylabel(unit)
