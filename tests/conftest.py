"""One strict process: CPU, float64 allowed, no silent promotion of dtype or rank."""

import pathlib

import jax
import numpy as np
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def few_mappings():
    """Drops compiled programs before a process has more memory mappings than it may."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30000:
        jax.clear_caches()


@pytest.fixture
def rng():
    """NumPy's generator, the same for every test."""
    return np.random.default_rng(0)


@pytest.fixture
def getkey():
    """A function that returns a new key at each call, the same for every test."""
    keys = iter(jax.random.split(jax.random.key(0), 100))
    return lambda: next(keys)
