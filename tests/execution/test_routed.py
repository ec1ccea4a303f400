"""Experts that no row reached stay as trained, and the number is that of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast

import nettrim_jax as nt

EXPERTS, WIDTH = 4, 8
RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(EXPERTS, WIDTH, WIDTH)).astype(np.float32)}
ROWS = RNG.normal(size=(96, WIDTH)).astype(np.float32)
SENT = np.repeat([0, 1, 2], 32)  # none to the last


def ragged(p, x):
    sizes = jnp.asarray(np.bincount(SENT, minlength=EXPERTS), jnp.int32)
    return jax.lax.ragged_dot(x, p["w"], sizes)


def by_zeros(p, x):
    on = jnp.asarray(np.eye(EXPERTS, dtype=np.float32)[SENT].T)
    each = jnp.broadcast_to(x[None], (EXPERTS, *x.shape)) * on[:, :, None]
    found = jnp.einsum("end,edf->enf", each, p["w"], precision="highest")
    return jax.nn.relu(found).sum(0)


def by_slots(p, x):  # each expert has a buffer, in which unused slots are zero
    slots = jnp.zeros((EXPERTS, 40, WIDTH), x.dtype)
    slots = slots.at[SENT, np.arange(96) % 32].set(x)
    found = jnp.einsum("end,edf->enf", slots, p["w"], precision="highest")
    return found[SENT, np.arange(96) % 32]


DISPATCH = {"ragged": ragged, "zeros": by_zeros, "slots": by_slots}
# the number of weights that three of the four experts keep
METHODS = {
    "sparsity": (nt.Sparsity(0.5), 96),
    "uneven": (nt.Sparsity(0.3), 134),
    "column": (nt.Sparsity(0.5, scope="column"), 96),
    "nm": (nt.NM(2, 4), 96),
    "blocks": (nt.Blocks(0.5, (2, 2)), 96),
    "sparsegpt": (nt.SparseGPT(nt.Sparsity(0.5)), 96),
    "layerobs": (nt.LayerOBS(nt.Sparsity(0.5)), 96),
    "wanda": (nt.Wanda(nt.Sparsity(0.5)), 96),
    "neurons": (nt.Wanda(nt.Neurons(0.5)), 96),
    "inputs": (nt.Wanda(nt.Inputs(0.5)), 96),
}


CASES = [
    pytest.param(
        name,
        dispatch,
        marks=() if name in often and dispatch != "slots" else pytest.mark.slow,
        id=f"{name}-{dispatch}",
    )
    for often in [("sparsegpt", "wanda", "neurons")]
    for name in METHODS
    for dispatch in DISPATCH
]


@pytest.mark.parametrize("name, dispatch", CASES)
def test_the_number_is_that_of_the_experts_with_rows(name, dispatch):
    method, left = METHODS[name]
    pruned = nt.prune(PARAMS, DISPATCH[dispatch], ROWS, method=method)
    w, mask = np.asarray(pruned.params["w"]), np.asarray(pruned.mask["w"])
    assert np.count_nonzero(mask[:3]) == np.count_nonzero(w[:3]) == left
    assert mask[3].all()
    np.testing.assert_array_equal(w[3], PARAMS["w"][3])
    (site,) = pruned.report.sites
    assert int(site.idle_lanes) == 1
    assert "w: 1 of 4 lanes saw no row" in str(pruned.report)


@pytest.mark.parametrize("dispatch", ["ragged", "zeros"])
def test_a_program_leaves_such_an_expert_as_trained(dispatch):
    pruned = nt.prune(PARAMS, DISPATCH[dispatch], ROWS, method=nt.NetTrim(epsilon=0.2))
    np.testing.assert_array_equal(pruned.params["w"][3], PARAMS["w"][3])
    assert 0 < np.count_nonzero(pruned.params["w"][:3]) < 3 * WIDTH**2


def test_what_needs_no_row_does_not_mind():
    method = nt.Magnitude(nt.Sparsity(0.5))
    pruned = nt.prune(PARAMS, by_zeros, ROWS, method=method)
    kept = np.abs(PARAMS["w"]) > np.median(np.abs(PARAMS["w"]))
    np.testing.assert_array_equal(pruned.mask["w"], kept)


@pytest.mark.parametrize("name", only_fast(["wanda"], ["wanda", "sparsegpt"]))
def test_within_jit_and_with_zeros_from_before(name):
    method, _ = METHODS[name]
    before = {"w": PARAMS["w"] * (np.abs(PARAMS["w"]) > 0.5)}

    def run(params, rows):
        return nt.prune(params, by_zeros, rows, method=method)

    plain, traced = run(before, ROWS), jax.jit(run)(before, ROWS)
    np.testing.assert_array_equal(plain.mask["w"], traced.mask["w"])
    mask = np.asarray(plain.mask["w"])
    assert np.count_nonzero(mask[:3]) == 96
    np.testing.assert_array_equal(mask[3], before["w"][3] != 0)


def test_if_all_experts_have_rows_nothing_changes():
    def everywhere(p, x):
        return jnp.einsum("nd,edf->enf", x, p["w"], precision="highest")

    method = nt.Wanda(nt.Sparsity(0.5))
    pruned = nt.prune(PARAMS, everywhere, ROWS, method=method, held_out=0.0)
    sizes = np.linalg.norm(ROWS, axis=0)[None, :, None] * np.abs(PARAMS["w"])
    np.testing.assert_array_equal(pruned.mask["w"], sizes > np.median(sizes))
    assert int(pruned.report.sites[0].idle_lanes) == 0
