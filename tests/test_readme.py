"""The README: its code runs, and prints what the README says it prints."""

import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nettrim_jax as nt

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def cells(text):
    return [line.split() for line in text.strip().splitlines()]


def test_code_prints_what_is_shown():
    # a fresh process: users have neither float64 nor strict promotion on
    run = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]],
        capture_output=True,
        text=True,
        cwd=README.parent,
        check=True,
    )
    shown, printed = cells(blocks("text")[0]), cells(run.stdout)
    assert [len(row) for row in shown] == [len(row) for row in printed]
    assert shown[0] == printed[0]
    # another machine rounds otherwise: counts and errors agree, steps and gaps roughly
    for want, got in zip(shown[1:3], printed[1:3], strict=True):
        assert want[:3] == got[:3]
        for a, b in zip(want[3:8], got[3:8], strict=True):
            assert float(b.rstrip("%")) == pytest.approx(float(a.rstrip("%")), rel=0.05)
        assert float(got[9]) <= 1e-3
    assert shown[3][:2] == printed[3][:2]


def test_a_loop_differs_by_one_line():
    [line] = re.findall(r"while training: `(tx = [^`]*)`", README.read_text())
    rng = np.random.default_rng(0)
    start = {"w": jnp.asarray(rng.normal(size=(16, 8)), "float32")}

    def train(tx):
        def step(carry, x):
            params, state = carry
            grads = jax.grad(lambda p: jnp.mean((x @ p["w"] - 1) ** 2))(params)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), jnp.sum(params["w"] == 0)

        x = jnp.asarray(rng.normal(size=(1010, 4, 16)), "float32")
        return jax.jit(lambda c: jax.lax.scan(step, c, x))((start, tx.init(start)))

    names = {"nt": nt, "tx": optax.sgd(0.01, momentum=0.9)}
    dense, zeros = train(names["tx"])
    exec(line, names)
    (sparse, state), fewer = train(names["tx"])
    assert int(zeros.max()) == 0 and int(fewer[-1]) == round(0.9 * 128)
    assert (jnp.diff(fewer) >= 0).all() and jax.tree.structure(sparse)
    nt.check_sparse(sparse, state)


def test_is_short():
    assert len(README.read_text().splitlines()) < 120


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)", README.read_text())
    assert len(links) > 15
    for link in links:
        assert "://" in link or (README.parent / link).exists(), link
