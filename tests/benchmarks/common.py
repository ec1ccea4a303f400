"""What the benchmarks of whole networks share."""

import pathlib
import sys

import nettrim_jax as nt

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))


def magnitude(params, apply_fn, batch, report):
    """The largest weights of each layer, as many as the report has non-zeros."""
    method = {
        f"^{site.path}$": nt.Magnitude(nt.Sparsity(float(site.sparsity)))
        for site in report.sites
    }
    return nt.prune(params, apply_fn, batch, method=method).params
