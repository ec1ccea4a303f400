"""Measures commits side by side: each of them in processes of its own.

Knows processes; knows nothing that is measured.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from freeze import Checkout  # noqa: E402


class OverTime(Exception):
    """A process took longer than it was given."""


@contextlib.contextmanager
def trees(against=None):
    """The folders of the commits to measure, by name; this one is ``here``."""
    with contextlib.ExitStack() as stack:
        others = {}
        if against:
            others[against] = stack.enter_context(Checkout(against))
        yield {**others, "here": ROOT}


def answers(tree, script, arguments, seconds=None, cache=None):
    """Yields what a script prints, a line of JSON each, with the package of a folder.

    Args:
      tree: the folder of the package.
      script: the script, which is this commit's.
      arguments: its arguments.
      seconds: how long it may take, if that is limited.
      cache: the folder of JAX's compiled programs; without it nothing is cached.

    Raises:
      OverTime: the seconds are over; the process is ended.
      subprocess.CalledProcessError: it failed.
    """
    # a cache of the caller's own would make the first call a warm one
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    env |= {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    if cache is not None:
        env |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
    command = [sys.executable, str(script), *map(str, arguments)]
    over = threading.Event()

    def stop():
        over.set()
        process.kill()

    with subprocess.Popen(
        command, env=env, cwd=tree, text=True, stdout=subprocess.PIPE
    ) as process:
        timer = threading.Timer(seconds or threading.TIMEOUT_MAX, stop)
        timer.start()
        try:
            for line in process.stdout:
                yield json.loads(line)
            process.wait()
        finally:
            timer.cancel()
            process.kill()  # if whoever asked wants no more
    if over.is_set():
        raise OverTime
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
