"""LeNet-300-100 on MNIST: what a rule that knows the loss keeps.

The same share of zeros in every layer, by Taylor with the cross-entropy of training
images, by magnitude and by Wanda, none with a refit, and each mask with the best values
(``refit``). Taylor's gradient is given in batches of several sizes, since squares are
summed over batches. Run ``python tests/benchmarks/taylor.py``; needs the data folder.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from mnist import apply_fn, load
from problems import data_file

import nettrim_jax as nt

LEVELS = (0.5, 0.7)


def network(params, batch):
    """The logits of the images of a batch."""
    return apply_fn(params, batch[0])


def loss(params, batch):
    """Cross-entropy."""
    logs = jax.nn.log_softmax(network(params, batch))
    return -jnp.mean(jnp.take_along_axis(logs, batch[1][:, None], axis=1))


def main():
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 256, 16])
    arguments = parser.parse_args()
    params, train, test, answers = load()
    labels = jnp.asarray(np.load(data_file("mnist.npz"))["y_train"].astype("int32"))
    pick = np.random.default_rng(0).permutation(len(train))[: arguments.rows]
    x, y = train[pick], labels[pick]

    def accuracy(params):
        return 100 * float((jnp.argmax(apply_fn(params, test), 1) == answers).mean())

    def batches(size):
        ends = range(size, len(x) + 1, size)
        return iter([(x[end - size : end], y[end - size : end]) for end in ends])

    print(f"Trained: {accuracy(params):.2f} % on the test images.\n")
    print("| zeros | rule | right | right with the best values |")
    print("| --- | --- | --- | --- |")
    for level in LEVELS:
        pattern = nt.Sparsity(level)
        runs = {
            f"Taylor, batches of {size}": (nt.Taylor(pattern, loss), batches(size))
            for size in arguments.sizes
        }
        runs["Wanda"] = nt.Wanda(pattern), (x, y)
        runs["magnitude"] = nt.Magnitude(pattern), (x, y)
        for name, (method, data) in runs.items():
            pruned = nt.prune(params, network, data, method=method)
            fitted = nt.refit(params, pruned.mask, network, (x, y), mode="cascade")
            print(
                f"| {100 * level:.0f} % | {name} | {accuracy(pruned.params):.2f} "
                f"| {accuracy(fitted.params):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
