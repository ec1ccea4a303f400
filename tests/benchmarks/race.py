"""The race: every method on the same layers and networks, under the same patterns.

Each method prunes each case in a process of its own, without labels and without
retraining. ``python tests/benchmarks/race.py --out race.json`` runs what ``race.json``
does not have yet and writes it after every run; ``--tables race.json`` prints the
Markdown tables, ``--page docs/race.md`` puts them where the page has their marks, and
``--picture race.png`` draws accuracy against sparsity. ``--recover`` only trains what
``Reconstruct`` left in cascade mode, without labels. Needs the data folder. The
transformer is trained once (some minutes) and then kept in the temporary folder, and so
are compiled programs: what is said of compilation is then the time to load them.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import race_cases
import race_picture
import race_runs
import race_tables

CACHE = pathlib.Path(tempfile.gettempdir()) / "nettrim_race_cache"


def main():
    """Run what is missing, then print the tables."""
    args = arguments()
    if args.child:
        return child(json.loads(args.child))
    if args.tables or args.page or args.picture:
        return show(args)
    data = json.loads(args.out.read_text()) if args.out.exists() else {}
    data = {"machine": {}, "quick": args.quick, "cases": {}} | data
    if data["quick"] != args.quick:
        raise SystemExit(f"{args.out} is of another size; give another file by --out")
    both = {"sparsegpt", race_tables.OURS} <= set(args.methods)
    duels = [race_tables.DUEL] if both else []
    methods = [race_tables.RECOVERED] if args.recover else [*args.methods, *duels]
    for name in args.cases:
        for method in methods:
            asked = missing(data, name, method, args)
            if asked:
                print(f"{name}, {method}: {len(asked)} runs", flush=True)
                run(data, name, method, asked, args)
    print("\n".join(race_tables.tables(data).values()))


def run(data, name, method, asked, args):
    """All runs of a method on a case in a process of its own, kept one by one."""
    order = json.dumps([name, method, asked, args.quick, args.repeats])
    command = [sys.executable, __file__, "--child", order]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if not line.startswith("{"):
                print(line, end="", flush=True)
                continue
            record = json.loads(line)
            keep(data, name, method, record)
            write(args.out, data)
            said = ("mode", "target", "score", "seconds", "recovered")
            print(*(record[k] for k in said if k in record), flush=True)
    if process.returncode:
        print(f"{name}, {method}: stopped with code {process.returncode}", flush=True)


def child(order):
    """Print one record per line."""
    name, method, asked, quick, repeats = order
    # a pruning's time is not to hide behind the compilation of what comes next
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    records = (
        race_runs.recovered(name, asked, quick)
        if method == race_tables.RECOVERED
        else race_runs.runs(name, method, asked, quick, repeats)
    )
    for record in records:
        print(json.dumps(record), flush=True)


def missing(data, name, method, args):
    """Pairs of mode and target that were not run yet; of ``recover`` the targets."""
    modes = args.modes if name in race_cases.NETWORKS else ["parallel"]
    case = data["cases"].get(name, {})
    if method == race_tables.RECOVERED:
        there = {} if args.again else case.get(method, {})
        network = name in race_cases.NETWORKS
        return [t for t in args.targets if network and t not in there]
    done = case.get("methods", {}).get(method, {})
    if args.again:
        done = {}
    elif method == race_tables.DUEL and "duel" in case:
        return []
    return [
        [mode, target]
        for mode in modes
        for target in args.targets
        if race_runs.wanted(name, method, mode, target)
        and f"{mode} {target}" not in done.get("runs", {})
    ]


def keep(data, name, method, record):
    """Put a record of a run where it belongs."""
    case = data["cases"].setdefault(name, {"methods": {}})
    if "case" in record:
        data["machine"] = record["machine"]
        case |= {k: v for k, v in record.items() if k not in ("case", "machine")}
        return
    if "duel" in record:
        case |= record
        return
    if "recovered" in record:
        case.setdefault(method, {})[record["target"]] = record["recovered"]
        return
    mine = case["methods"].setdefault(method, {"runs": {}})
    where = f"{record['mode']} {record['target']}"
    rest = {k: v for k, v in record.items() if k not in ("mode", "target")}
    mine["runs"][where] = rest


def write(path, data):
    """One line per run, whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(race_tables.dumps(data) + "\n")
    new.replace(path)


def show(args):
    """Tables, page and picture of what was run."""
    data = json.loads((args.tables or args.out).read_text())
    if args.page:
        args.page.write_text(race_tables.fill(args.page.read_text(), data))
    if args.picture:
        race_picture.draw(data, args.picture)
    if args.tables and not args.page:
        for name, text in race_tables.tables(data).items():
            print(f"## {name}\n\n{text}\n")


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    path = pathlib.Path
    parser.add_argument("--out", type=path, default=path("race.json"))
    parser.add_argument("--cases", nargs="+", default=["all"], help="or how they begin")
    parser.add_argument("--targets", nargs="+", default=list(race_tables.TARGETS))
    parser.add_argument("--methods", nargs="+", default=list(race_runs.METHODS))
    parser.add_argument("--modes", nargs="+", default=["parallel", "cascade"])
    parser.add_argument("--repeats", type=int, default=1, help="at 90 %%, to time it")
    parser.add_argument("--recover", action="store_true", help="only this")
    parser.add_argument("--again", action="store_true", help="what is there, too")
    parser.add_argument("--quick", action="store_true", help="small data")
    parser.add_argument("--tables", type=path, help="only print those of this file")
    parser.add_argument("--page", type=path, help="only put them into this page")
    parser.add_argument("--picture", type=path, help="only draw this picture")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    cases = [*race_cases.NETWORKS, *race_cases.LAYERS]
    given = tuple(args.cases)
    args.cases = [name for name in cases if "all" in given or name.startswith(given)]
    both = (args.targets, race_tables.TARGETS), (args.methods, race_runs.METHODS)
    for asked, known in both:
        for name in asked:
            if name not in known:
                parser.error(f"{name!r}: expected some of {', '.join(known)}")
    return args


if __name__ == "__main__":
    main()
