"""A transformer of characters: loss against the share of weights removed.

Trains a small Flax transformer on ``tinyshakespeare.txt`` for a few minutes, prunes it
for a range of epsilon with no label and no retraining, and beside it removes the
smallest weights of each layer to the same numbers of non-zeros. Run ``python
tests/benchmarks/shakespeare.py``; needs the data folder.
"""

import argparse
import functools
import pathlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import magnitude
from flax import serialization
from problems import data_file

import nettrim_jax as nt

CONTEXT = 64
WIDTH = 128
BLOCKS = 2


class Block(nn.Module):
    """Attention over what came before, then a ReLU network of each position."""

    @nn.compact
    def __call__(self, x):
        """``[batch, position, width]`` to the same."""
        mask = nn.make_causal_mask(x[..., 0])
        y = nn.LayerNorm(name="norm1")(x)
        attention = nn.MultiHeadDotProductAttention(num_heads=4, name="attention")
        x = x + attention(y, mask=mask)
        y = nn.LayerNorm(name="norm2")(x)
        y = nn.relu(nn.Dense(4 * WIDTH, name="rise")(y))
        return x + nn.Dense(WIDTH, name="fall")(y)


class Transformer(nn.Module):
    """Logits of the next character."""

    letters: int

    @nn.compact
    def __call__(self, text):
        """``[batch, position]`` to ``[batch, position, letters]``."""
        x = nn.Embed(self.letters, WIDTH, name="embed")(text)
        place = nn.initializers.normal(0.02)
        x = x + self.param("place", place, (CONTEXT, WIDTH))[: text.shape[1]]
        for i in range(BLOCKS):
            x = Block(name=f"block{i}")(x)
        return nn.Dense(self.letters, name="head")(nn.LayerNorm(name="norm")(x))


def load():
    """The text as numbers, its last tenth apart, and how many letters there are."""
    path = data_file("tinyshakespeare.txt")
    if path is None:
        raise SystemExit("needs tinyshakespeare.txt; set NETTRIM_DATA to its folder")
    letters, text = np.unique(np.frombuffer(path.read_bytes(), np.uint8), False, True)
    cut = len(text) * 9 // 10
    return text[:cut].astype("int32"), text[cut:].astype("int32"), len(letters)


def windows(text, count, seed):
    """So many pieces of the text, drawn at random, and one letter more of each."""
    starts = np.random.default_rng(seed).integers(0, len(text) - CONTEXT, count)
    return jnp.asarray(text[starts[:, None] + np.arange(CONTEXT + 1)])


def loss_of(network, params, pieces):
    """Mean cross-entropy of every next letter, in nats."""
    logits = network.apply({"params": params}, pieces[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, pieces[:, 1:])
    return losses.mean()


def train(network, text, steps):
    """Params after so many steps of Adam on 64 pieces each."""
    params = network.init(jax.random.key(0), windows(text, 1, 0)[:, :-1])["params"]
    rate = optax.warmup_cosine_decay_schedule(0, 3e-3, steps // 10, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    @jax.jit
    def step(params, state, pieces):
        loss, slope = jax.value_and_grad(functools.partial(loss_of, network))(
            params, pieces
        )
        move, state = optimizer.update(slope, state)
        return optax.apply_updates(params, move), state, loss

    state = optimizer.init(params)
    for i in range(steps):
        params, state, loss = step(params, state, windows(text, 64, i + 1))
        if i % 100 == 99:
            print(f"step {i + 1}: {float(loss):.3f}", flush=True)
    return params


def main():
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--params", type=pathlib.Path, help="file to keep them in")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--gamma", type=float, default=1.4)
    parser.add_argument("--modes", nargs="+", default=["parallel", "cascade"])
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    args = parser.parse_args()
    text, later, letters = load()
    network = Transformer(letters)
    if args.params and args.params.exists():
        shapes = network.init(jax.random.key(0), windows(text, 1, 0)[:, :-1])["params"]
        params = serialization.from_bytes(shapes, args.params.read_bytes())
    else:
        params = train(network, text, args.steps)
        if args.params:
            args.params.write_bytes(serialization.to_bytes(params))
    test = windows(later, 512, 0)
    loss = jax.jit(functools.partial(loss_of, network))
    print(f"\nTrained: {float(loss(params, test)):.3f} nats a letter on later text.\n")
    print("| mode | epsilon | removed | Net-Trim | magnitude | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    pieces = windows(text, 512, 10**6)[:, :-1]

    def apply_fn(params, pieces):
        return network.apply({"params": params}, pieces)

    for mode in args.modes:
        for epsilon in args.epsilon:
            start = time.perf_counter()
            pruned = nt.prune(
                params,
                apply_fn,
                pieces,
                method=nt.NetTrim(
                    epsilon=epsilon, gamma=args.gamma, rounds=args.rounds, refit=True
                ),
                mode=mode,
                rows=args.rows,
                on_failure="warn",
            )
            seconds = time.perf_counter() - start
            other = magnitude(params, apply_fn, pieces, pruned.report)
            print(
                f"| {mode} | {epsilon} | {100 * float(pruned.report.sparsity):.1f} % "
                f"| {float(loss(pruned.params, test)):.3f} "
                f"| {float(loss(other, test)):.3f} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
