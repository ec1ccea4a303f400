"""How much of an exact budget's loss should look at the network's output?

Prunes with several shares (``Reconstruct(downstream=...)``) and prints, beside what
the network scores, the held-out error of its layers over that with a share of 0: the
median. Run ``python tests/benchmarks/downstream.py``; needs the data folder, and the
transformer a file of ``shakespeare.py --params``.
"""

import itertools

import common  # noqa: F401  puts the tests' folder on the path
import numpy as np
from split import NETWORKS, parser

import nettrim_jax as nt

LEVELS = {"lenet": [0.9], "resnet": [0.7, 0.9], "transformer": [0.7, 0.9]}


def main():
    """Print one Markdown table."""
    options = parser(__doc__, ["parallel", "cascade"])
    options.add_argument("--shares", type=float, nargs="+", default=[0.08, 0.3, 0.8])
    args = options.parse_args()
    print("| network | removed | mode | share | layers' error | score |")
    print(f"{'| --- ' * 6}|")
    for name in args.networks:
        load, form, _ = NETWORKS[name]
        params, apply_fn, batch, measure = load(args)
        levels = args.levels or LEVELS[name]
        for level, mode in itertools.product(levels, args.modes):
            alone = None
            for share in [0.0, *args.shares]:
                pruned = nt.prune(
                    params,
                    apply_fn,
                    batch,
                    method=nt.Reconstruct(nt.Sparsity(level), downstream=share),
                    mode=mode,
                    rows=args.rows,
                )
                sites = pruned.report.sites
                errors = np.array([float(site.held_out_error) for site in sites])
                alone = errors if alone is None else alone
                print(
                    f"| {name} | {level:.0%} | {mode} | {share} "
                    f"| {np.median(errors / alone):.3f} "
                    f"| {form.format(measure(pruned.params))} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
