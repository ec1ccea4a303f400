"""Fits of a pruned network whose file takes at most so many bytes.

Knows files, the search among ways, and fits.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from nettrim_jax.allocation import widths
from nettrim_jax.allocation.widths import Choice, Tried
from nettrim_jax.files.sizes import Sizes
from nettrim_jax.refitting import Adapted, Fit, adapted, halved
from nettrim_jax.results import MethodError


class Fitted(NamedTuple):
    """A fit whose file takes at most so many bytes, and how many."""

    done: Adapted
    size: int


def within(most: int, fit: Fit, ways: Sequence[Callable[[Any], Any]]) -> Fitted:
    """The fit that moves the output least among those of so many bytes.

    Half of the rows are solved on in all ways, a quarter steers, and a quarter compares
    the last networks, which are solved on all rows.

    Args:
      most: the bytes of the file.
      fit: of all rows.
      ways: the methods of the sites of a network, from the most bytes to the fewest.
    """
    asked = f"{fit.caller}(bytes={most})"
    half = halved(fit, ways[0], asked)
    sizes, network = Sizes(fit.params), half.start.first.network
    curves = widths.measured(
        *(half.source, half.dealt, half.start.parts),
        ways=[way(network)[0] for way in ways],
        options=half.options,
        size=sizes,
        asked=asked,
    )
    # of a loader that is read already
    again = fit._replace(
        batch=half.source.batch, settings=fit.settings._replace(batches=None)
    )

    def run(choice: Choice) -> Tried:
        methods = curves.methods(choice)
        done = adapted(again, lambda network: (methods, half.start.skipped))
        changed = {k: done.leaves[k] for one in curves.joined for k in one.leaves}
        return Tried(sizes(changed), curves.moved(done.leaves), done)

    found = widths.settled(curves, most, run)
    if found.size > most:
        raise MethodError(
            f"{asked}: the smallest file has {found.size} bytes; give as many at "
            "least, prune further, or let more layers share values by include="
        )
    return Fitted(found.done, found.size)
