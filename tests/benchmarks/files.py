"""How large files of networks are, and how long it takes to save and to load them.

    python tests/benchmarks/files.py lenet
    python tests/benchmarks/files.py large

Networks are pruned first, and then saved in several ways and loaded; each way is
checked bit for bit. Sizes are those of whole files, over the arrays in float32.
``lenet`` needs the data folder, and ``large`` some 4 GB of memory.
"""

import argparse
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from common import nt
from problems import inputs

# what is saved of a pruned network: its params as they are
WAYS: dict[str, Callable] = {
    "exact": lambda pruned, params, apply_fn, batch: pruned.params
}
ENCODINGS = {
    "plain": (),
    "bitmask": ("bitmask", "zlib"),
    "gaps, Huffman": ("gaps", "codes", "huffman"),
    "smallest": nt.files.encoding.NAMES,
}
WIDTHS = (1024, 4096, 4096, 1024)
LARGE, SMALL = 0.04, 0.03  # share of large weights; size of the others beside them


def same(one, other):
    """Whether two trees are equal in every bit."""
    leaves = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


def measured(params, encodings, folder):
    """What a file has, and the CPU seconds to save and to load it."""
    path = folder / "model.safetensors"
    start = time.process_time()
    nt.save(path, params, encodings=encodings)
    saved = time.process_time()
    back = nt.load(path, like=params)
    loaded = time.process_time()
    assert same(back, params)
    return nt.describe(path), saved - start, loaded - saved


def table(name, said, pruned, params, apply_fn, batch):
    """Prints a line for each way and each choice of encodings."""
    with tempfile.TemporaryDirectory() as folder:
        for way, of in WAYS.items():
            stored = of(pruned, params, apply_fn, batch)
            for form, encodings in ENCODINGS.items():
                found, save, load = measured(stored, encodings, pathlib.Path(folder))
                print(
                    f"| {name} | {said(stored)} | {way} | {form} | {found.bytes:,} "
                    f"| {found.ratio:.1f} | {save:.1f} | {load:.1f} |",
                    flush=True,
                )
    return found


def heading(measure):
    """Prints the head of a table."""
    print(f"| network | {measure} | values | encodings | bytes | times smaller | "
          "save, s | load, s |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")


def lenet(arguments):
    """LeNet-300-100 on MNIST by ``Reconstruct``."""
    import mnist

    params, train, test, labels = mnist.load()
    x = train[np.random.default_rng(0).permutation(len(train))[: arguments.rows]]

    def accuracy(params):
        right = jnp.argmax(mnist.apply_fn(params, test), 1) == labels
        return f"{100 * float(right.mean()):.2f} %"

    print(f"Trained: {accuracy(params)} on the test images.\n")
    heading("accuracy")
    for level in arguments.levels or [0.9, 0.95]:
        method = nt.Reconstruct(nt.Sparsity(level))
        pruned = nt.prune(params, mnist.apply_fn, x, method=method, mode=arguments.mode)
        found = table(f"{level:.0%} zeros", accuracy, pruned, params, mnist.apply_fn, x)
    print(f"\n```\n{found}\n```")


def apply_fn(params, x):
    """A network of ReLU layers."""
    for k, name in enumerate(params):
        x = x @ params[name]["kernel"] + params[name]["bias"]
        x = jax.nn.relu(x) if k < len(params) - 1 else x
    return x


def large(arguments):
    """25 million weights: few of them large, inputs correlated."""
    rng = np.random.default_rng(0)
    params = {}
    for k, (d_in, d_out) in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False)):
        W = rng.standard_normal((d_in, d_out), np.float32)
        W *= np.where(rng.random(W.shape) < LARGE, 1, SMALL).astype(np.float32)
        W *= np.sqrt(2 / (LARGE * d_in)).astype(np.float32)
        b = 0.1 * rng.standard_normal(d_out, np.float32)
        params[f"layer_{k}"] = {"kernel": jnp.asarray(W), "bias": jnp.asarray(b)}
    x = jnp.asarray(inputs("correlated", arguments.rows, WIDTHS[0], rng), jnp.float32)
    heading("deviation")
    for level in arguments.levels or [0.9, 0.96]:
        method = getattr(nt, arguments.method)(nt.Sparsity(level))
        start = time.process_time()
        pruned = nt.prune(params, apply_fn, x, method=method, mode=arguments.mode)
        deviation = f"{float(pruned.report.deviation):.3f}"
        seconds = time.process_time() - start
        found = table(
            f"{level:.0%} zeros", lambda _, d=deviation: d, pruned, params, apply_fn, x
        )
    print(
        f"\nPruned by {arguments.method} in {seconds:.0f} CPU s.\n\n```\n{found}\n```"
    )


def main():
    """Print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=["lenet", "large"])
    parser.add_argument("--levels", type=float, nargs="+")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--mode", default="parallel")
    parser.add_argument("--method", default="SparseGPT", help="for the large network")
    arguments = parser.parse_args()
    {"lenet": lenet, "large": large}[arguments.network](arguments)


if __name__ == "__main__":
    main()
