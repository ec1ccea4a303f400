"""Prunes a trained ResNet-20 on CIFAR-10, with no label and no retraining.

Takes trained weights and images from the folder ``NETTRIM_DATA``
(``resnet20_cifar10.npz``, ``cifar10_jpeg.npz``), prunes with 1024 training images, and
prints a Markdown table: accuracy on test images against the share of weights removed,
beside magnitude pruning to the same number of non-zeros in every layer.
"""

import argparse
import io
import os
import pathlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import nettrim_jax as nt

MEAN = np.array([0.485, 0.456, 0.406], "float32")
SPREAD = np.array([0.229, 0.224, 0.225], "float32")


class Block(nn.Module):
    """Two convolutions and a shortcut without weights (He et al., 2016, option A)."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x):
        """``[batch, height, width, channels]`` to the same, strided."""
        y = conv(self.channels, self.stride, "conv1")(x)
        y = nn.relu(norm("bn1")(y))
        y = norm("bn2")(conv(self.channels, 1, "conv2")(y))
        if self.stride > 1:
            more = (self.channels - x.shape[-1]) // 2
            x = x[:, ::2, ::2]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (more, more)))
        return nn.relu(y + x)


class ResNet20(nn.Module):
    """Three stages of three blocks; logits of ten classes."""

    @nn.compact
    def __call__(self, x):
        """``[batch, 32, 32, 3]`` to ``[batch, 10]``."""
        x = nn.relu(norm("bn1")(conv(16, 1, "conv1")(x)))
        for stage, channels in enumerate((16, 32, 64)):
            for block in range(3):
                stride = 2 if stage and not block else 1
                x = Block(channels, stride, name=f"layer{stage + 1}_{block}")(x)
        return nn.Dense(10, name="linear")(x.mean((1, 2)))


def conv(channels, stride, name):
    """A 3 x 3 convolution, padded by one on every side."""
    return nn.Conv(
        channels, (3, 3), stride, ((1, 1), (1, 1)), use_bias=False, name=name
    )


def norm(name):
    """Batch normalisation in inference."""
    return nn.BatchNorm(use_running_average=True, epsilon=1e-5, name=name)


def variables(folder):
    """The trained weights as Linen's variables."""
    params, stats = {}, {}
    names = {"weight": "scale", "running_mean": "mean", "running_var": "var"}
    for name, array in np.load(folder / "resnet20_cifar10.npz").items():
        *path, leaf = name.replace("module.", "").split(".")
        if leaf == "num_batches_tracked":
            continue
        if len(path) == 3:  # layer1.0.conv1
            path = [f"{path[0]}_{path[1]}", path[2]]
        if path[-1].startswith("conv"):
            leaf, array = "kernel", array.transpose(2, 3, 1, 0)
        elif path[-1] == "linear":
            leaf, array = ("kernel", array.T) if leaf == "weight" else (leaf, array)
        tree = stats if leaf.startswith("running") else params
        for part in path:
            tree = tree.setdefault(part, {})
        tree[names.get(leaf, leaf)] = jnp.asarray(array, jnp.float32)
    return {"params": params, "batch_stats": stats}


def images(folder, part, count):
    """The first ``count`` images of a part and their labels."""
    z = np.load(folder / "cifar10_jpeg.npz")
    data, ends = z[f"jpeg_{part}"], z[f"end_{part}"]
    starts = np.concatenate([[0], ends[:-1]])
    pick = np.random.default_rng(0).permutation(len(ends))[:count]
    pixels = [
        np.asarray(Image.open(io.BytesIO(data[starts[i] : ends[i]].tobytes())))
        for i in pick
    ]
    x = (np.stack(pixels).astype("float32") / 255 - MEAN) / SPREAD
    return jnp.asarray(x), z[f"y_{part}"][pick]


def magnitude(trained, x, report):
    """As many non-zeros per layer as the report has, the largest ones."""
    method = {
        f"^{site.path}$": nt.Magnitude(nt.Sparsity(float(site.sparsity)))
        for site in report.sites
    }
    return nt.prune(trained, ResNet20().apply, x, method=method).params


def main():
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--modes", nargs="+", default=["parallel", "cascade"])
    parser.add_argument(
        "--epsilon", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.3]
    )
    parser.add_argument("--gamma", type=float, default=3.0, help="of the cascade")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tests", type=int, default=2000, help="test images")
    args = parser.parse_args()
    folder = pathlib.Path(os.environ.get("NETTRIM_DATA", "../shared/data"))
    if not (folder / "resnet20_cifar10.npz").exists():
        raise SystemExit(
            f"no resnet20_cifar10.npz in {folder}; set NETTRIM_DATA to its folder"
        )
    trained = variables(folder)
    train, _ = images(folder, "train", 1024)
    test, labels = images(folder, "test", args.tests)
    network = jax.jit(ResNet20().apply)

    def accuracy(trained):
        parts = np.split(test, range(500, len(test), 500))
        answers = [np.argmax(network(trained, part), 1) for part in parts]
        return 100 * float(np.mean(np.concatenate(answers) == labels))

    print(nt.sites(trained, ResNet20().apply, train))
    print(f"\nTrained: {accuracy(trained):.1f} % on {len(test)} test images\n")
    print("| mode | epsilon | removed | Net-Trim | magnitude | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for mode in args.modes:
        for epsilon in args.epsilon:
            start = time.perf_counter()
            pruned = nt.prune(
                trained,
                ResNet20().apply,
                train,
                method=nt.NetTrim(
                    epsilon=epsilon, gamma=args.gamma, rounds=args.rounds, refit=True
                ),
                mode=mode,
                rows=args.rows,
                held_out=0,
                on_failure="warn",
            )
            seconds = time.perf_counter() - start
            other = magnitude(trained, train, pruned.report)
            print(
                f"| {mode} | {epsilon} | {100 * float(pruned.report.sparsity):.1f} % "
                f"| {accuracy(pruned.params):.1f} | {accuracy(other):.1f} "
                f"| {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
