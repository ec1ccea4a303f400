"""Progress as a bar on a terminal, or through the user's own callback.

Knows text; knows no pruning.
"""

import sys
from collections.abc import Callable

from nettrim_jax.results import MethodError

Callback = Callable[[int, int, str], None]
Progress = None | bool | Callback

WIDTH = 30


class Counter:
    """Counts the batches that are read, before and after the layers are known.

    Args:
      progress: as for :func:`start`.
      traced: whether JAX is tracing.
    """

    def __init__(self, progress: Progress, traced: bool):
        self.progress = progress
        self.show = start(progress, 1, traced)

    def __call__(self, count: int) -> None:
        """Shows how many batches were read."""
        self.show(0, f"batch {count}")

    def layers(self, total: int, traced: bool) -> Callable[[int, str], None]:
        """From now on the progress is one of so many layers; returns what shows it."""
        self.show = start(self.progress, total, traced)
        return self.show


def start(progress: Progress, total: int, traced: bool) -> Callable[[int, str], None]:
    """A function that is called as ``(done, what)`` and shows the progress.

    Args:
      progress: ``None``: a bar if stderr is a terminal; True or False: a bar or none;
        or a callback ``(done, total, what)``.
      total: number of steps.
      traced: whether JAX is tracing; then there is no progress to show.

    Returns:
      The function; it does nothing where there is nothing to show.

    Raises:
      MethodError: ``progress`` is none of these.
    """
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise MethodError(
            f"progress={progress!r}: expected None, True, False or a function "
            "(done, total, what)"
        )
    show = sys.stderr.isatty() if progress is None else progress
    if traced or not show:
        return lambda done, what: None
    callback = progress if callable(progress) else _bar
    return lambda done, what: callback(done, total, what)


def _bar(done: int, total: int, what: str) -> None:
    filled = WIDTH * done // max(total, 1)
    bar = "#" * filled + "-" * (WIDTH - filled)
    end = "\n" if done == total else ""
    sys.stderr.write(f"\rnettrim [{bar}] {done}/{total} {what:<12}{end}")
    sys.stderr.flush()
