"""How many samples it takes to find a sparse unit: the recovery theorem, drawn.

Run ``python examples/sample_complexity.py``; it takes under three minutes on two cores.

Units with s of N weights behind a ReLU, inputs with independent standard normal
entries: with probability at least 1 - N^(1 - mu) Net-Trim's program finds such a unit
exactly from (11 s + 7) mu log N samples (Aghasi et al., 2017). Thousands of such
programs are drawn, and all of up to 64 samples, all of up to 128, and so on, are solved
by one vmapped call.
"""

import argparse
import functools
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import nettrim_jax as nt

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# The theorem has epsilon = 0, which nothing can certify in floating point. With this
# share of the response and the solver's tolerance a unit that is found is off by a few
# thousandths of its norm, and one that is not by 0.1 to 1; CLOSE lies between.
EPSILON = 1e-3
CLOSE = 2e-2
# all programs of a call wait for the slowest; what takes longer counts as not found
SOLVER = nt.ADMM(tol=3e-3, max_steps=1000)
LEAST, OCTAVE = 4, 4  # fewest samples, and how many counts of samples per doubling


def program(key, nonzeros, samples, rows, inputs):
    """A unit with so many non-zeros, and what it answers to so many of the rows."""
    keys = jax.random.split(key, 3)
    X = jax.random.normal(keys[0], (rows, inputs))
    chosen = jnp.argsort(jax.random.uniform(keys[1], (inputs,))) < nonzeros
    w = jnp.where(chosen, jax.random.normal(keys[2], (inputs,)), 0)[:, None]
    counts = (jnp.arange(rows) < samples)[:, None]
    Y = jnp.where(counts, jax.nn.relu(X @ w), 0)
    # a row that is off and has no limit does not count
    V = jnp.where(counts, 0, jnp.inf)
    return nt.relu_program(X, Y, EPSILON * jnp.sqrt(jnp.sum(Y**2)), V=V), w


@functools.partial(jax.jit, static_argnames=("rows", "inputs"))
def errors(keys, nonzeros, samples, rows, inputs):
    """How far each program's answer is from the unit, relative to its norm.

    Infinite where the solve did not converge.
    """

    def draw(key, nonzeros, samples):
        return program(key, nonzeros, samples, rows, inputs)

    programs, w = jax.vmap(draw)(keys, nonzeros, samples)
    answers = jax.vmap(lambda one: nt.solve(one, SOLVER))(programs)
    off = jnp.sum((answers.W - w) ** 2, (1, 2)) / jnp.sum(w**2, (1, 2))
    done = answers.result == nt.results.CONVERGED
    return jnp.where(done, jnp.sqrt(off), jnp.inf)


def counts_to(most):
    """Numbers of samples, evenly spread over their logarithm."""
    steps = int(np.ceil(OCTAVE * np.log2(most / LEAST)))
    return np.unique(np.rint(LEAST * 2 ** (np.arange(steps + 1) / OCTAVE)).astype(int))


def experiment(inputs, nonzeros, counts, trials, seed=0):
    """Errors ``[nonzeros, counts, trials]``, and seconds without compilation."""
    found, seconds = np.zeros((len(nonzeros), len(counts), trials)), 0.0
    below, rows = 0, 64
    while below < counts[-1]:
        chosen = (counts > below) & (counts <= rows)
        if chosen.any():
            lanes = np.meshgrid(nonzeros, counts[chosen], range(trials), indexing="ij")
            s, P = (jnp.asarray(lane.ravel()) for lane in lanes[:2])
            keys = jax.random.split(jax.random.key(seed + rows), len(s))
            call = errors.lower(keys, s, P, rows, inputs).compile()
            start = time.perf_counter()
            found[:, chosen] = np.asarray(call(keys, s, P)).reshape(lanes[0].shape)
            seconds += time.perf_counter() - start
        below, rows = rows, 2 * rows
    return found, seconds


def theorem(nonzeros, inputs):
    """Samples that suffice, with mu = 1."""
    return (11 * nonzeros + 7) * np.log(inputs)


def scaling(nonzeros, inputs):
    """s log(N / s)."""
    return nonzeros * np.log(inputs / nonzeros)


def half(rates, counts):
    """Samples at which half of the units are found, between the counts tried."""
    rising = np.maximum.accumulate(rates, axis=1)
    return np.exp([np.interp(0.5, row, np.log(counts)) for row in rising])


def picture(ax, rates, inputs, nonzeros, counts, slope):
    """Share of units found over samples and non-zeros, with both curves."""
    mesh = ax.pcolormesh(
        counts, nonzeros, rates, cmap="cividis", vmin=0, vmax=1, shading="nearest"
    )
    s = np.linspace(nonzeros[0] - 0.5, nonzeros[-1] + 0.5, 200)
    ax.plot(scaling(s, inputs) * slope, s, "w--", lw=2)
    ax.plot(theorem(s, inputs), s, "k-", lw=2)
    last = nonzeros[-1]
    for text, x, colour, side in (
        (f"{slope:.1f} s log(N / s) ", scaling(last, inputs) * slope, "w", "right"),
        ("(11 s + 7) log N ", theorem(last, inputs), "k", "right"),
    ):
        ax.text(x, last, text, color=colour, ha=side, va="center", fontsize="small")
    ax.set(
        xscale="log",
        xlabel="samples P",
        ylabel="non-zeros s of the unit",
        title=f"units found, N = {inputs} inputs",
        xlim=(counts[0] * 0.92, counts[-1] * 1.08),
        ylim=(nonzeros[0] - 0.5, nonzeros[-1] + 0.5),
    )
    ax.set_xticks(ticks := [4, 8, 16, 32, 64, 128, 256, 512], ticks)
    ax.minorticks_off()
    return mesh


def line(ax, halves, slope):
    """Samples at which half are found, for every N, over s log(N / s)."""
    for (inputs, (nonzeros, middle)), marker in zip(
        sorted(halves.items()), "osD", strict=False
    ):
        ax.plot(
            scaling(nonzeros, inputs), middle, marker, mfc="none", label=f"N = {inputs}"
        )
    most = max(scaling(s, inputs).max() for inputs, (s, _) in halves.items())
    ax.plot(
        [0, most], [0, slope * most], "k--", lw=1, label=f"{slope:.1f} s log(N / s)"
    )
    ax.set(
        xlabel="s log(N / s)",
        ylabel="samples P",
        title="half of the units are found",
        xlim=(0, None),
        ylim=(0, None),
    )
    ax.legend(loc="upper left", fontsize="small")


def main():
    """Draw, solve, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(tempfile.gettempdir()) / "nettrim_sample_complexity.png"
    parser.add_argument("--out", type=pathlib.Path, default=default)
    parser.add_argument("--inputs", type=int, default=64)
    parser.add_argument("--nonzeros", type=int, default=10, help="of units, at most")
    parser.add_argument("--trials", type=int, default=20)
    arguments = parser.parse_args()
    inputs, trials = arguments.inputs, arguments.trials

    nonzeros = np.arange(1, arguments.nonzeros + 1)
    counts = counts_to(theorem(nonzeros[-1], inputs))
    found, seconds = experiment(inputs, nonzeros, counts, trials)
    programs, rates = found.size, (found <= CLOSE).mean(axis=2)
    halves = {inputs: (nonzeros, half(rates, counts))}
    # the same for other widths, where no more than the transition is of interest
    few = 2 ** np.arange(int(np.log2(arguments.nonzeros)) + 1)
    for other in (inputs // 2, 2 * inputs):
        short = counts_to(5.5 * scaling(few, other).max())
        tried, more = experiment(other, few, short, trials)
        programs, seconds = programs + tried.size, seconds + more
        halves[other] = few, half((tried <= CLOSE).mean(axis=2), short)

    ratios = np.concatenate([p / scaling(s, n) for n, (s, p) in halves.items()])
    slope = float(np.exp(np.mean(np.log(ratios))))
    print("| s | half are found at P | all from P | theorem: P |")
    print("| --- | --- | --- | --- |")
    for s, at, row in zip(nonzeros, halves[inputs][1], rates, strict=True):
        failing = np.flatnonzero(row < 1)
        first = counts[min(failing[-1] + 1, len(counts) - 1)] if len(failing) else LEAST
        print(f"| {s} | {at:.0f} | {first} | {theorem(s, inputs):.0f} |")
    enough = counts[None, :] >= theorem(nonzeros, inputs)[:, None]
    right = found[enough] <= CLOSE
    print(f"\nfrom the theorem's P on: {right.sum()} of {right.size} units found")
    print(f"half are found at {slope:.2f} s log(N / s), N = {sorted(halves)}:")
    print(f"  from {ratios.min():.2f} to {ratios.max():.2f}")
    near = (found > CLOSE / 2) & (found < 2 * CLOSE)
    last = counts[np.isinf(found).any(axis=(0, 2))].max(initial=0)
    print(f"errors within a factor of 2 of {CLOSE}: {100 * near.mean():.1f} % of units")
    print(
        f"not converged: {100 * np.isinf(found).mean():.1f} %, none beyond P = {last}"
    )
    print(f"{programs} programs, {programs / seconds:.0f} a second")

    fig, axes = plt.subplots(
        1, 2, figsize=(10, 4), layout="constrained", width_ratios=(3, 2)
    )
    mesh = picture(axes[0], rates, inputs, nonzeros, counts, slope)
    fig.colorbar(mesh, ax=axes[0], label=f"share of {trials} units found")
    line(axes[1], halves, slope)
    fig.savefig(arguments.out, dpi=100)
    print(f"figure: {arguments.out}")


if __name__ == "__main__":
    main()
