"""Measures the solver: ``python tests/benchmarks/solver.py`` prints Markdown tables.

Steps and seconds to a certified gap on small programs; with ``--lenet`` also on
LeNet-300-100's layers, and what a step costs beside its matrix products; with
``--cvxpy`` the same programs by cvxpy and Clarabel, which uses one core: under
``taskset -c 0`` so do we. Times are medians over repeats and exclude compilation,
which is stated apart. LeNet's layers need the data folder (``NETTRIM_DATA``).
"""

import argparse
import dataclasses
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import sys
import time

HERE = pathlib.Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2])]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import problems  # noqa: E402

import nettrim_jax as nt  # noqa: E402
from nettrim_jax._numerics import matmul  # noqa: E402
from nettrim_jax.convex import admm, projection  # noqa: E402
from nettrim_jax.convex.step import cold, step  # noqa: E402
from nettrim_jax.execution import batching  # noqa: E402
from nettrim_jax.methods.layer_program import program_cost  # noqa: E402

ROWS = 4096
EPSILONS = (0.05, 0.2)
REPEATS = 7


def table(title, head, rows):
    """Prints a Markdown table."""
    print(f"\n### {title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    sys.stdout.flush()


def figure(x):
    return f"{x:.2g}" if x < 100 else f"{x:.0f}"


def seconds(function, *args):
    """The answer and the seconds that it took."""
    start = time.perf_counter()
    answer = jax.block_until_ready(function(*args))
    return answer, time.perf_counter() - start


def program(problem, dtype):
    make = nt.relu_program if problem.relu else nt.linear_program
    X, Y, t, epsilon = (
        jnp.asarray(x, dtype)
        for x in (problem.X, problem.Y, problem.t, problem.epsilon)
    )
    return make(X, Y, epsilon, t=t, bias=problem.bias)


def compiled(program, config):
    """A compiled solve of programs like this one, and the seconds that it took."""
    start = time.perf_counter()
    solve = jax.jit(lambda one: nt.solve(one, config)).lower(program).compile()
    return solve, time.perf_counter() - start


def small():
    """The problems that an oracle can solve, LeNet's pieces where there is data."""
    real = problems.real_cut() if has_data() else []
    return problems.generated() + real


def solved(chosen, dtype, config):
    """One ``(problem, solution, seconds)`` each, and the seconds of compilation."""
    solves, rows, compilation = {}, [], 0.0
    for problem in chosen:
        one = program(problem, dtype)
        key = problem.bias, *jax.tree.map(jnp.shape, jax.tree.leaves(one))
        if key not in solves:
            solves[key], took = compiled(one, config)
            compilation += took
        took = []
        for _ in range(REPEATS):
            answer, once = seconds(solves[key], one)
            took.append(once)
        rows.append((problem, answer, statistics.median(took)))
    return rows, compilation


def lenet(rows, epsilon):
    """LeNet's layers as problems with a free bias."""
    for i, (X, W, b, relu) in enumerate(problems.lenet_layers(rows)):
        yield problems.layer(f"LeNet layer {i}", relu, X, W, b, epsilon, "free")


def steps_small(chosen, what="small"):
    rows = []
    for tol in (1e-3, 1e-4):
        answers, compilation = solved(chosen, jnp.float32, nt.ADMM(tol=tol))
        steps = [int(answer.stats.steps) for _, answer, _ in answers]
        times = [1e3 * took for *_, took in answers]
        missed = sum(
            int(answer.result) != nt.results.CONVERGED for _, answer, _ in answers
        )
        rows.append(
            [
                f"{tol:g}",
                statistics.median(steps),
                max(steps),
                figure(statistics.median(times)),
                figure(max(times)),
                missed,
                f"{compilation:.0f}",
            ]
        )
    table(
        f"Steps to a certified gap: {len(chosen)} {what} programs, float32",
        ["gap", "steps, median", "steps, most", "ms, median", "ms, most"]
        + ["not converged", "compilation, s, all"],
        rows,
    )


def steps_lenet(rows, max_steps):
    out = []
    for epsilon in EPSILONS:
        for problem in lenet(rows, epsilon):
            one = program(problem, jnp.float32)
            for tol in (1e-3, 1e-4):
                solve, compilation = compiled(
                    one, nt.ADMM(tol=tol, max_steps=max_steps)
                )
                answer, took = seconds(solve, one)
                done = int(answer.result) == nt.results.CONVERGED
                out.append(
                    [
                        problem.name,
                        f"{problem.X.shape[1]} x {problem.Y.shape[1]}",
                        epsilon,
                        f"{tol:g}",
                        int(answer.stats.steps) if done else f"> {max_steps}",
                        figure(took),
                        f"{float(answer.certificate.gap):.1e}",
                        f"{float(answer.certificate.violation):.1e}",
                        f"{float(jnp.mean(answer.W == 0)):.1%}",
                        figure(compilation) if compilation > 0.1 else "as above",
                    ]
                )
                print(*out[-1], file=sys.stderr, flush=True)
    table(
        f"Steps to a certified gap: LeNet-300-100, {rows} rows, free bias, float32",
        ["layer", "weights", "epsilon", "gap asked", "steps", "s"]
        + ["gap", "violation", "zeros", "compilation, s"],
        out,
    )


def step_cost(rows, repeats, length=20):
    """A step beside its three matrix products alone, one after the other in turn."""
    one = program(next(lenet(rows, EPSILONS[0])), jnp.float32)
    graph = jax.jit(projection.factorise, static_argnums=1)(one.X, True)
    one = dataclasses.replace(one, X=graph.X)
    state = jax.jit(cold)(one, graph, one.response.scale())
    R = jax.random.normal(jax.random.key(0), one.response.Y.shape, jnp.float32)

    @jax.jit
    def steps(one, graph, state):
        def body(_, state):
            return step(one, graph, state, 1.7)[0]

        return jax.lax.fori_loop(0, length, body, state)

    @jax.jit
    def products(graph, R):
        # each product takes what the one before it made, so none leaves the loop; its
        # eigenvalues lie between 0 and 1, so nothing overflows
        def body(_, R):
            W = matmul(matmul(R, graph.X), graph.inverse)
            return matmul(W, graph.XT)

        return jax.lax.fori_loop(0, length, body, R)

    runs = {"step": (steps, one, graph, state), "products": (products, graph, R)}
    times = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            took = seconds(*run)[1]
            if repeat:  # the first one compiles
                times[name].append(1e3 * took / length)
    whole, product = (statistics.median(times[name]) for name in runs)
    (n, d_in), d_out = graph.X.shape, R.shape[0]
    flops = 2 * d_out * (2 * n * d_in + d_in**2)
    table(
        f"One step of LeNet layer 0 ({n} rows, {d_in} x {d_out}), float32, "
        f"medians of {repeats}",
        ["step, ms", "its three products, ms", "ratio", "products, GFLOP/s"],
        [
            [figure(whole), figure(product), f"{whole / product:.2f}"]
            + [figure(flops / product / 1e6)]
        ],
    )


def clarabel(problem, tol):
    """``(objective, seconds in all, seconds in Clarabel)`` by cvxpy."""
    import cvxpy as cp
    import helpers

    start = time.perf_counter()
    cvx = helpers.cvxpy_problem(problem)
    cvx.solve(cp.CLARABEL, tol_gap_abs=tol, tol_gap_rel=tol, tol_feas=tol)
    took = time.perf_counter() - start
    return float(cvx.value), took, cvx.solver_stats.solve_time


def against_cvxpy(chosen, dtype, tol):
    """The same programs to the same tolerance, one by one."""
    answers, compilation = solved(chosen, dtype, nt.ADMM(tol=tol))
    clarabel(chosen[0], tol)  # its imports
    theirs = [clarabel(problem, tol) for problem in chosen]
    ours = [took for *_, took in answers]
    differences = [
        abs(float(answer.stats.objective) / value - 1)
        for (_, answer, _), (value, *_) in zip(answers, theirs, strict=True)
        if value > 1e-3
    ]
    rows = [
        [name, figure(sum(times)), figure(1e3 * statistics.median(times))]
        + [
            figure(1e3 * max(times)),
            f"{statistics.median(times) / statistics.median(ours):.1f}",
        ]
        for name, times in (
            ("nettrim_jax", ours),
            ("cvxpy with Clarabel", [row[1] for row in theirs]),
            ("Clarabel alone", [row[2] for row in theirs]),
        )
    ]
    table(
        f"{len(chosen)} small programs to {tol:g}, {jnp.dtype(dtype)} (compilation of "
        f"ours, apart: {compilation:.0f} s; objectives within {max(differences):.0e})",
        ["solver", "s, all", "ms, median", "ms, most", "ratio of medians"],
        rows,
    )


def stacks_against_cvxpy(tol=1e-4, lanes=16):
    """Programs of one shape, as layers come: ours one by one, and as prune does."""
    rng = np.random.default_rng(0)
    config = nt.ADMM(tol=tol)
    one_by_one = jax.jit(lambda one: nt.solve(one, config))

    def in_a_call(stack):
        chunk = batching.at_once(*program_cost(stack), 2**31)
        return batching.each(admm.solve, stack, chunk=chunk, config=config)

    rows = []
    sizes = ((60, 12, 5), (100, 30, 8), (150, 40, 10), (300, 60, 20))
    for n, d_in, d_out in sizes:
        for kind in ("white", "correlated", "nonnegative"):
            chosen = [
                problems.layer(
                    f"{i}",
                    True,
                    problems.inputs(kind, n, d_in, rng),
                    rng.normal(size=(d_in, d_out)) / np.sqrt(d_in),
                    0.3 * rng.normal(size=d_out),
                    0.1,
                    "free",
                )
                for i in range(lanes)
            ]
            made = [program(problem, jnp.float32) for problem in chosen]
            stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)
            alone = one_by_one.lower(made[0]).compile()
            single = [[seconds(alone, one)[1] for one in made] for _ in range(3)]
            single = statistics.median(
                map(statistics.median, zip(*single, strict=True))
            )
            stacked = [seconds(in_a_call, stack)[1] for _ in range(REPEATS + 1)]
            stacked = statistics.median(stacked[1:]) / lanes  # the first one compiles
            theirs = [clarabel(problem, tol)[1] for problem in chosen[:3]]
            theirs = statistics.median(theirs)
            rows.append(
                [f"{n} x {d_in} x {d_out}", kind, figure(1e3 * theirs)]
                + [figure(1e3 * single), figure(1e3 * stacked)]
                + [f"{theirs / single:.0f}", f"{theirs / stacked:.0f}"]
            )
    table(
        f"ms a program to {tol:g}, ReLU, free bias, float32, medians, compiled before",
        ["size", "inputs", "cvxpy with Clarabel", "ours, one by one"]
        + [f"ours, {lanes} in a call", "ratio, one by one", "ratio, in a call"],
        rows,
    )


def _clarabel_apart(queue, problem, tol):
    # a cone program of 2e8 coefficients: let it fail before the machine does
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resource.setrlimit(resource.RLIMIT_AS, (3 * memory // 4,) * 2)
    queue.put(clarabel(problem, tol))


def large_against_cvxpy(problem, limit, tol=1e-3):
    """One layer of real size; cvxpy in a process that can be ended."""
    one = program(problem, jnp.float32)
    solve, compilation = compiled(one, nt.ADMM(tol=tol))
    answer, ours = seconds(solve, one)
    del solve, one
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_clarabel_apart, args=(queue, problem, tol))
    process.start()
    start = time.perf_counter()
    while process.is_alive() and queue.empty() and time.perf_counter() - start < limit:
        time.sleep(0.2)
    if not queue.empty():
        value, took, inner = queue.get()
        row = [f"{value:.6g}", figure(took), figure(took / ours)]
    elif process.is_alive():
        row = ["", f"> {limit:g}", f"> {figure(limit / ours)}"]
    else:
        row = ["", f"failed, exit code {process.exitcode}, see stderr", ""]
    process.kill()
    process.join()
    table(
        f"{problem.name}, {' x '.join(map(str, problem.X.shape))} x "
        f"{problem.Y.shape[1]}, epsilon {EPSILONS[0]}, to {tol:g} "
        f"(compilation of ours, apart: {figure(compilation)} s)",
        ["solver", "objective", "s", "ratio"],
        [
            ["nettrim_jax, float32", f"{float(answer.stats.objective):.6g}"]
            + [figure(ours), "1"],
            ["cvxpy with Clarabel", *row],
        ],
    )


def has_data():
    files = ("lenet300_mnist.npz", "mnist.npz")
    return all(problems.data_file(name) is not None for name in files)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lenet", action="store_true", help="LeNet-300-100's layers")
    parser.add_argument("--cvxpy", action="store_true", help="cvxpy with Clarabel")
    parser.add_argument(
        "--limit",
        type=float,
        default=600,
        help="seconds for cvxpy's large layer; 0: skip",
    )
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of LeNet's layers")
    parser.add_argument(
        "--max-steps", type=int, default=2000, help="for LeNet's layers"
    )
    parser.add_argument("--repeats", type=int, default=7, help="for the cost of a step")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    kind = jax.devices()[0].device_kind
    print(
        f"jax {jax.__version__} on {kind}, {os.cpu_count()} cores, {platform.machine()}"
    )
    if not has_data():
        print(
            "\nNo LeNet: lenet300_mnist.npz or mnist.npz is absent; "
            "set NETTRIM_DATA to the folder that holds them."
        )
    chosen = small()
    steps_small(chosen)
    steps_small(problems.scaled(), "badly scaled")
    if args.cvxpy:
        against_cvxpy(chosen, jnp.float32, 1e-4)
        against_cvxpy(chosen, jnp.float64, 1e-6)
        stacks_against_cvxpy()
    if args.lenet and has_data():
        step_cost(args.rows, args.repeats)
        steps_lenet(args.rows, args.max_steps)
    if args.cvxpy and args.limit and has_data():
        large_against_cvxpy(next(lenet(1000, EPSILONS[0])), args.limit)


if __name__ == "__main__":
    main()
