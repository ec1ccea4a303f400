"""One strict process: CPU, float64 allowed, no silent promotion of dtype or rank."""

import gc
import itertools
import os
import pathlib
import subprocess
import sys

import jax
import jaxlib.version
import numpy as np
import pytest
from limits import free_mappings

# optimising thousands of small programs takes longer than it saves; they run as users
# run them with JAX_DISABLE_MOST_OPTIMIZATIONS=0
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)
    # a flag that XLA does not know ends the process
    if jaxlib.version.__version_info__ < (0, 11):
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "")
            + " --xla_cpu_use_fusion_emitters=false"
            # two processes keep two cores busy, so parts of programs gain nothing
            + " --xla_cpu_parallel_codegen_split_count=1"
        )
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# tracing makes millions of objects that stay; looking at them again takes seconds
gc.set_threshold(100_000, 20, 20)


TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def few_mappings():
    """Looks at the process's memory mappings every so many tests."""
    yield
    if next(TESTS) % 20 == 0:
        free_mappings()


@pytest.fixture
def rng():
    """NumPy's generator, the same for every test."""
    return np.random.default_rng(0)


@pytest.fixture
def getkey():
    """A function that returns a new key at each call, the same for every test."""
    keys = iter(jax.random.split(jax.random.key(0), 100))
    return lambda: next(keys)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel as it is released; the source archive that made it lies beside it."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    root = pathlib.Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "build", "--outdir", folder, root]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    [built] = folder.glob("*.whl")
    return built
