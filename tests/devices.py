"""A program in a process of its own, on several devices."""

import os
import subprocess
import sys


def run(script, *args, devices):
    """Runs a script on so many devices of the CPU; fails with what it says."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-c", script, *args],
        env={"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        | os.environ
        | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
