"""CPU seconds of ``prune`` on one layer, beside those of its own matrix products.

Run ``python tests/benchmarks/limit.py``: a square dense layer of random weights, warm
calls only. The limit is the time that the products of a method would take at the rate
of this machine, measured in the same process by products of the layer's size, so 100 %
is a method that does nothing else, and no faster than the machine multiplies. What the
products are is derived from the code, in one function per method. Factorisations count
by the operations that textbooks state for them, as if they ran at that rate, too,
which the eigenvectors of a symmetric matrix do not. ``--downstream`` measures instead
what the sensitivity of the output costs, ``--against REV`` another commit beside this.
"""

import argparse
import json
import math
import sys
import time
from typing import NamedTuple

from children import answers, trees

METHODS = ("Sparsity(0.5)", "NM(2, 4)", "SparseGPT(Sparsity(0.5))", "NetTrim(0.1)")
SIZES = (256, 512, 768, 1536, 3072)
ENOUGH = 60  # seconds of warm calls after which there are no more
CHOLESKY, INVERSE = 1 / 3, 2.0  # per d^3, the second by two triangular solves
EIGH = 9.0  # per d^3, with eigenvectors (Golub and Van Loan, by QR)


class Layer(NamedTuple):
    """What the products of a method depend on."""

    rows: int
    fitted: int  # the others are held out
    d_in: int
    d_out: int
    relu: bool
    steps: int  # as the report states them; 0 if it does not


def product(a, b, c):
    """Operations of ``[a, b] @ [b, c]``: one product and one sum per term."""
    return 2 * a * b * c


def passes(layer):
    """What any method takes: runs of the network, and the measured error.

    One run captures the layer's rows, two compare the outputs before and after
    (``orders.moved``), and ``base.squared_errors`` multiplies once more.
    """
    return 4 * product(layer.rows, layer.d_in, layer.d_out)


def moments(layer):
    """The Gram matrix of the inputs and a one, less that of the rows held out.

    Both are whole products, though their results are symmetric
    (``statistics.Moments``, ``statistics.without_rows``).
    """
    d = layer.d_in + 1
    return product(d, layer.rows + layer.rows - layer.fitted, d)


def pattern(layer):
    """``Sparsity`` and ``NM``, which mean ``Reconstruct`` (``pattern_admm``).

    A layer that feeds no other one has no coupling of its units. So ``chosen`` makes
    the quadratic of some rows, and tries all ridges (with a ReLU also all plain parts)
    on some units; then comes the quadratic of all rows, and all steps.
    """
    try:
        from nettrim_jax.methods import pattern_admm as code
        from nettrim_jax.methods import trials
    except ImportError:  # a commit with other products
        return math.nan
    n, d_in, d_out, relu = layer.fitted, layer.d_in, layer.d_out, layer.relu
    steps = min(max(code.WORK // (d_in**2 * d_out), code.FEWEST), code.MOST)
    blocks = -(-(layer.steps or steps) // code.EVERY)
    units, aside = d_out if d_out <= code.NARROW else code.UNITS, n // trials.ASIDE
    tries = len(trials.RIDGES) + (len(trials.PLAINS) if relu else 0)
    tried = product(d_in + 1, aside, d_in + 1) + quadratic(n, d_in)
    one = loop(n, d_in, units, relu, min(code.TRIAL, blocks))
    tried += tries * (one + product(n, d_in, units))  # and errors on the other rows
    fit = quadratic(n, d_in) + loop(n, d_in, d_out, relu, blocks)
    return passes(layer) + moments(layer) + tried + fit


def quadratic(n, d_in):
    """``quadratic.quadratic_of``: a Gram matrix and its eigenvectors."""
    return product(d_in, n, d_in) + EIGH * d_in**3


def loop(n, d_in, units, relu, blocks):
    """``pattern_admm._loop``: one or two products in each step.

    Two are with the eigenvectors; one is with an inverse, which is a product for each
    step size and pays for many units. A new target takes a product with the rows for
    the linear term, and with a ReLU one for the response; there is one before the loop,
    and with a ReLU one for each step size.
    """
    from nettrim_jax.methods import pattern_admm as code
    from nettrim_jax.methods import quadratic as parts

    inverse = d_in <= parts.WORTH * units
    block = code.EVERY * (1 if inverse else 2) * product(d_in, d_in, units)
    block += product(d_in, d_in, d_in) if inverse else 0
    aim = (2 if relu else 1) * product(n, d_in, units)
    start = product(d_in, d_in, units) + aim
    return start + blocks * (block + (aim if relu else 0))


def sparsegpt(layer):
    """``SparseGPT.answer``: a factor of the inverse, then the inputs in blocks.

    The factor takes a Cholesky factorisation and the inverse of a triangle. In its
    block each input moves all weights of the block, and a block moves all later ones,
    which are half of them on average.
    """
    import nettrim_jax as nt

    d_in, d_out = layer.d_in, layer.d_out
    block = min(nt.SparseGPT(nt.Sparsity(0.5)).block, d_in)
    factor = (CHOLESKY + INVERSE) * d_in**3
    within = product(d_in, block, d_out)
    later = sum(
        product(max(d_in - start - block, 0), block, d_out)
        for start in range(0, d_in, block)
    )
    return passes(layer) + moments(layer) + factor + within + later


def nettrim(layer):
    """``NetTrim``: the factor of the projection, steps, and certificates.

    Inverse and products in a step are those of ``projection``: two with the rows and
    one with an inverse of the smaller side. Every few steps ``certificate.certify``
    multiplies the rows by the weights for the violation, and by the dual for the bound.
    """
    import nettrim_jax as nt

    n, d_in, d_out = layer.fitted, layer.d_in, layer.d_out
    side, rows = min(n, d_in), product(n, d_in, d_out)
    factor = product(side, max(n, d_in), side) + (CHOLESKY + INVERSE) * side**3
    step = 2 * rows + product(side, side, d_out)
    checks = layer.steps // nt.ADMM().check_every
    return passes(layer) + factor + layer.steps * step + checks * 2 * rows


FLOPS = dict(zip(METHODS, (pattern, pattern, sparsegpt, nettrim), strict=True))


def method_of(nt, name):
    """The method that a name spells."""
    return {
        "Sparsity(0.5)": nt.Sparsity(0.5),
        "NM(2, 4)": nt.NM(2, 4),
        "SparseGPT(Sparsity(0.5))": nt.SparseGPT(nt.Sparsity(0.5)),
        "NetTrim(0.1)": nt.NetTrim(0.1),
    }[name]


def warm(call, repeats):
    """The answer of a call and the least CPU seconds of warm ones."""
    import jax

    answer = jax.block_until_ready(call())  # compiles
    took, start = [], time.perf_counter()
    while len(took) < repeats and (not took or time.perf_counter() - start < ENOUGH):
        cpu = time.process_time()
        answer = jax.block_until_ready(call())
        took.append(time.process_time() - cpu)
    return answer, min(took)


def rate(d):
    """CPU seconds per operation of a product ``[d, d] @ [d, d]``, float32."""
    import jax
    import jax.numpy as jnp

    a, b = jax.random.normal(jax.random.key(0), (2, d, d))
    # some in a row, as one alone is shorter than the clock is exact
    count = max(1, round(3e10 / product(d, d, d)))

    @jax.jit
    def multiply(a, b):
        def once(_, a):
            return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

        return jax.lax.fori_loop(0, count, once, a)

    _, seconds = warm(lambda: multiply(a, b / d**0.5), 5)
    return seconds / (count * product(d, d, d))


def data(rows, *widths):
    """Inputs, and weights from each width to the next."""
    import jax

    keys = jax.random.split(jax.random.key(0), len(widths))
    x = jax.random.normal(keys[0], (rows, widths[0]))
    pairs = zip(keys[1:], widths, widths[1:], strict=False)
    return x, [jax.random.normal(k, (a, b)) / a**0.5 for k, a, b in pairs]


def child(d, given):
    """Measures all methods at one size and prints each as JSON."""
    import jax

    import nettrim_jax as nt

    x, [w] = data(given.rows, d, d)

    def apply_fn(params, x):
        y = x @ params["w"]
        return y if given.linear else jax.nn.relu(y)

    each = rate(d)
    for name in given.methods:
        method = method_of(nt, name)
        pruned, seconds = warm(
            lambda method=method: nt.prune({"w": w}, apply_fn, x, method=method),
            given.repeats,
        )
        site = pruned.report.sites[0]
        _, fitted, d_in, d_out = site.shape
        relu, steps = site.response == "relu", int(site.steps)
        layer = Layer(given.rows, fitted, d_in, d_out, relu, steps)
        limit = each * FLOPS[name](layer)
        print(json.dumps({"method": name, "cpu": seconds, "limit": limit}), flush=True)


def downstream(units, given):
    """Measures a ReLU layer that feeds another, and prints both times as JSON."""
    import jax

    import nettrim_jax as nt

    x, weights = data(given.rows, given.inputs, units, given.inputs)
    params = dict(zip(("hidden", "output"), weights, strict=True))

    def apply_fn(params, x):
        return jax.nn.relu(x @ params["hidden"]) @ params["output"]

    seconds, pattern = [], nt.Sparsity(0.5)
    for method in (nt.Reconstruct(pattern), nt.Reconstruct(pattern, downstream=0)):
        asked = {"hidden": method, ".*": None}
        pruned, took = warm(
            lambda asked=asked: nt.prune(params, apply_fn, x, method=asked),
            given.repeats,
        )
        share = float(pruned.report.sites[0].downstream)
        seconds.append({"cpu": took, "share": share})
    print(json.dumps(seconds), flush=True)


def options():
    """The options of the tables, and those of a process that measures one size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--against", metavar="REV")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD"
    )
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--linear", action="store_true", help="no ReLU follows")
    parser.add_argument(
        "--repeats", type=int, default=3, help="warm calls; the best one counts"
    )
    parser.add_argument(
        "--downstream",
        type=int,
        nargs="?",
        const=2048,
        metavar="UNITS",
        help="measure a ReLU layer of so many units that feeds another one",
    )
    parser.add_argument("--inputs", type=int, default=512, help="of that layer")
    return parser.parse_args()


def passed(given, size):
    """The arguments of a process that measures one size."""
    shared = ["--rows", given.rows, "--repeats", given.repeats]
    if given.downstream:
        own = ["--downstream", given.downstream, "--inputs", given.inputs]
    else:
        own = ["--linear"] * given.linear + ["--methods", *given.methods]
    return ["--child", size, *shared, *own]


def cells(found, given, size, name):
    """The cells of one row, from what a process printed."""
    if given.downstream:
        on, off = found
        where = f"{given.inputs} to {size}, ReLU", name, f"{on['share']:.2f}"
        figures = on["cpu"], off["cpu"], on["cpu"] / off["cpu"]
    else:
        cpu, limit = found["cpu"], found["limit"]
        where = found["method"], str(size), name
        figures = cpu, limit, 100 * limit / cpu
    return [*where, *(f"{figure:.3g}" for figure in figures)]


def main():
    """Print one Markdown table."""
    given = options()
    if given.child is not None:
        if given.downstream:
            return downstream(given.downstream, given)
        return child(given.child, given)
    columns = ["method", "d", "commit", "CPU s", "limit s", "share %"]
    sizes = given.sizes
    if given.downstream:
        columns = ["layer", "commit", "downstream"]
        columns += ["CPU s", "CPU s, downstream=0", "ratio"]
        sizes = [given.downstream]
    print("|", " | ".join(columns), "|")
    print(f"{'| --- ' * len(columns)}|", flush=True)
    with trees(given.against) as folders:
        for size in sizes:
            for name, tree in folders.items():
                for found in answers(tree, __file__, passed(given, size)):
                    print("|", " | ".join(cells(found, given, size, name)), "|")
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
