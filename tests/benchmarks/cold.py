"""What a user waits for: compilations, CPU seconds and wall seconds of ``prune``.

Every row is measured in a process of its own: a first call, the same call again, the
next level of sparsity (or epsilon), and the other mode; with ``--cached`` also the
first call of another process that finds JAX's persistent cache filled by an earlier
one. Run ``python tests/benchmarks/cold.py``; ``--networks`` takes larger networks, and
``--against REV`` measures another commit beside this one, row by row in one sitting.
"""

import argparse
import json
import subprocess
import tempfile
import time

from children import OverTime, answers, trees

# named here, as the process that prints the table needs no JAX
NETWORKS = ("readme", "conv", "resnet20", "efficientnet", "minilm", "transformer")
COMPILED = "/jax/core/compile/backend_compile_duration"
HIT = "/jax/compilation_cache/cache_hits"
METHODS = {
    "nettrim": lambda nt, more: nt.NetTrim(0.2 if more else 0.1),
    "sparsity": lambda nt, more: nt.Sparsity(0.8 if more else 0.9),
    "sparsegpt": lambda nt, more: nt.SparseGPT(nt.Sparsity(0.8 if more else 0.9)),
    "magnitude": lambda nt, more: nt.Magnitude(nt.Sparsity(0.8 if more else 0.9)),
}
CALLS = (  # another level, another mode
    ("cold", False, False),
    ("warm", False, False),
    ("next level", True, False),
    ("other mode", False, True),
)
CACHED = "second process with the cache"


def child(network, method, mode, given):
    """Measures the calls of one row and prints each as JSON."""
    import cold_networks
    import jax

    import nettrim_jax as nt

    events = {COMPILED: 0, HIT: 0}

    def listen(event, *_, **__):
        if event in events:
            events[event] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.monitoring.register_event_listener(listen)
    sizes = {}
    if network == "efficientnet":
        sizes = {"images": given.images, "size": given.size}
    made = cold_networks.NETWORKS[network](**sizes)
    if made is None:
        print(json.dumps({"skipped": "no data"}))
        return
    params, apply_fn, x = jax.block_until_ready(made[0]), *made[1:]
    for name, more, other in CALLS[: given.calls]:
        events.update(dict.fromkeys(events, 0))
        cpu, wall = time.process_time(), time.perf_counter()
        there = "cascade" if (mode == "cascade") != other else "parallel"
        pruned = nt.prune(
            params, apply_fn, x, method=METHODS[method](nt, more), mode=there
        )
        jax.block_until_ready(pruned)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        hits = events[HIT]
        # a program that comes from the cache is counted as compiled, too
        done = {"compiled": events[COMPILED] - hits, "hits": hits}
        print(json.dumps({"call": name, **done, "cpu": cpu, "wall": wall}), flush=True)


def cell(call):
    """What one call took."""
    hits = f" ({call['hits']} from the cache)" if call["hits"] else ""
    return f"{call['compiled']}{hits}; {call['cpu']:.2f}; {call['wall']:.2f}"


def row(tree, names, given):
    """Yields the cells of one row; the last one says why any are missing."""
    deadline = time.monotonic() + given.limit

    def calls(count, cache=None):
        sizes = ["--images", given.images, "--size", given.size]
        left = max(deadline - time.monotonic(), 0.001)
        arguments = ["--child", *names, "--calls", count, *sizes]
        return answers(tree, __file__, arguments, seconds=left, cache=cache)

    try:
        for call in calls(len(CALLS)):
            if "skipped" in call:
                yield f"skipped: {call['skipped']}"
                return
            yield cell(call)
        if given.cached:
            # a row by itself, so that its other calls write no cache
            with tempfile.TemporaryDirectory() as cache:
                list(calls(1, cache))
                yield from map(cell, calls(1, cache))
    except OverTime:
        yield f"over {given.limit:g} s"
    except subprocess.CalledProcessError as error:
        yield f"failed with {error.returncode}"


def options():
    """The options of the table, and those of a process that measures one row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--calls", type=int, default=len(CALLS), help=argparse.SUPPRESS)
    parser.add_argument("--against", metavar="REV")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=["readme", "conv"]
    )
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=list(METHODS)
    )
    parser.add_argument("--modes", nargs="+", default=["parallel", "cascade"])
    parser.add_argument("--cached", action="store_true", help=f"also the {CACHED}")
    parser.add_argument(
        "--limit", type=float, default=600, help="seconds that a row may take"
    )
    parser.add_argument("--images", type=int, default=16, help="of efficientnet")
    parser.add_argument("--size", type=int, default=64, help="side of these images")
    return parser.parse_args()


def main():
    """Print one Markdown table."""
    given = options()
    if given.child:
        return child(*given.child, given)
    columns = [name for name, *_ in CALLS] + [CACHED] * given.cached
    print("| network, method, mode | commit |", " | ".join(columns), "|")
    print("| --- | --- |", " | ".join("---" for _ in columns), "|", flush=True)
    with trees(given.against) as folders:
        for network in given.networks:
            for method in given.methods:
                for mode in given.modes:
                    for name, tree in folders.items():
                        names = network, method, mode
                        cells = list(row(tree, names, given))
                        cells += [""] * (len(columns) - len(cells))
                        title = f"| {', '.join(names)} | {name} |"
                        print(title, " | ".join(cells), "|", flush=True)
    print("\nCompilations; CPU seconds; wall seconds.")


if __name__ == "__main__":
    main()
