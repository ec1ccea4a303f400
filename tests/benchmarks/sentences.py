"""A sentence encoder, pruned, taught back and stored: what its tutorial shows.

Writes ``docs/sentences.json``: likeness to the trained answers on test speeches
(cosine, and rank correlation of pairs) with CPU seconds, and bytes of files. What ran
replaces what was there. Rates are chosen on speeches that no run has. Needs the data
folder; the last part takes more than an hour of CPU. From the root:

    python tests/benchmarks/sentences.py rules
    python tests/benchmarks/sentences.py files
    python tests/benchmarks/sentences.py recover
"""

import argparse
import json
import pathlib
import tempfile
import time
import warnings

import jax
import jax.numpy as jnp
import optax
import race_tables
import recover

import nettrim_jax as nt

STORED = pathlib.Path(__file__).resolve().parents[2] / "docs" / "sentences.json"
LEVELS = (0.5, 0.7)
RULES = {
    "magnitude": (nt.Magnitude, "parallel"),
    "Wanda": (nt.Wanda, "parallel"),
    "SparseGPT": (nt.SparseGPT, "parallel"),
    "Reconstruct": (nt.Reconstruct, "parallel"),
    "Reconstruct, cascade": (nt.Reconstruct, "cascade"),
}
LEVEL, RATES = 0.7, (1e-3, 3e-4)  # what is taught back, and the rates that are tried


def store(part, name, found):
    """Puts a line of a part into the file."""
    data = json.loads(STORED.read_text()) if STORED.exists() else {}
    data.setdefault(part, {})[name] = found
    STORED.write_text(race_tables.dumps(data) + "\n")
    print(f"{part}, {name}: {json.dumps(found)}", flush=True)


def likeness(score, params):
    """Cosine and rank correlation as numbers."""
    return [float(word) for word in score(params).split(" / ")]


def prune(made, rule, level, mode):
    """The encoder without so many weights of each layer."""
    params, call, few, _, _, more, _ = made
    method = rule(nt.Sparsity(level))
    return nt.prune(params, call, few, method=method, mode=mode, key=0, **more)


def rules(made):
    """Every rule at every level."""
    for name, (rule, mode) in RULES.items():
        found = {}
        for level in LEVELS:
            began = time.process_time()
            pruned = prune(made, rule, level, mode)
            took = time.process_time() - began
            found[f"{level:.0%}"] = [*likeness(made[-1], pruned.params), round(took)]
            store("rules", name, found)


def files(made):
    """Bytes of the arrays as they were published, and of files at one level."""
    params, pruned = made[0], prune(made, nt.SparseGPT, LEVEL, "parallel")
    whole, half = (
        jax.tree.map(lambda leaf: jnp.asarray(leaf, "float16"), tree)
        for tree in (params, pruned.params)
    )
    store("bytes", "trained, float16", sum(leaf.nbytes for leaf in whole.values()))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "encoder.safetensors"
        for name, tree in {"float32": pruned.params, "float16": half}.items():
            nt.save(path, tree)
            store("bytes", f"{LEVEL:.0%} zeros, {name}", path.stat().st_size)


def teach(made, pruned, rate, match):
    """What ``recover`` gives, and its CPU seconds."""
    params, call, _, many, *_ = made
    steps, size = recover.SETTINGS["minilm"]
    began = time.process_time()
    done = nt.recover(
        *(pruned, params, call, many),
        **{"steps": steps, "size": size, "match": match, "key": 0},
        optimizer=optax.adam(optax.cosine_decay_schedule(rate, steps)),
    )
    return done, round(time.process_time() - began)


def taught(made):
    """The encoder taught back, at the rate with the highest cosine on others."""
    aside, test = recover.a_minilm("beside", 0)[-1], made[-1]
    pruned = prune(made, nt.Reconstruct, LEVEL, "cascade")
    store("aside", "pruned", likeness(aside, pruned.params))
    store("aside", "pruned, test", likeness(test, pruned.params))
    tried = []
    for rate in RATES:
        done, took = teach(made, pruned, rate, "output")
        found = [*likeness(aside, done.params), took]
        store("aside", f"output, {rate:g}", found)
        tried.append((found[:2], rate, done.params, took))
    _, rate, params, took = max(tried, key=lambda each: each[0])
    found = {f"{LEVEL:.0%}": [*likeness(test, params), took]}
    store("rules", "then recover", found)
    done, took = teach(made, pruned, rate, "layers")
    store("aside", f"layers, {rate:g}", [*likeness(aside, done.params), took])
    store("aside", "layers, test", likeness(test, done.params))


PARTS = {"rules": rules, "files": files, "recover": taught}


def main():
    """Measures the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", choices=list(PARTS), nargs="+")
    parts = parser.parse_args().parts
    warnings.filterwarnings("ignore", category=UserWarning)
    made = recover.a_minilm("test", 0)
    for part in parts:
        PARTS[part](made)


if __name__ == "__main__":
    main()
