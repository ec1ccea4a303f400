"""Fits of a pruned network whose file takes at most so many bytes.

Knows files, the search among ways, and fits.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from nettrim_jax.allocation import widths
from nettrim_jax.allocation.widths import Choice, Tried
from nettrim_jax.files.sizes import Sizes
from nettrim_jax.refitting import Adapted, Settings, adapted, halved
from nettrim_jax.results import MethodError
from nettrim_jax.typing import ApplyFn, Batch, Params


class Fitted(NamedTuple):
    """A fit whose file takes at most so many bytes, and how many."""

    done: Adapted
    size: int


def within(
    most: int,
    params: Params,
    trained: Params,
    apply_fn: ApplyFn,
    batch: Batch,
    *,
    ways: Sequence[Callable[[Any], Any]],
    settings: Settings,
    caller: str,
) -> Fitted:
    """The fit that moves the output least among those of so many bytes.

    Half of the rows are solved on in all ways, a quarter steers, and a quarter compares
    the last networks, which are solved on all rows.

    Args:
      most: the bytes of the file.
      params: the params of the pruned network.
      trained: a tree like them.
      apply_fn: the network.
      batch: the data.
      ways: the methods of the sites of a network, from the most bytes to the fewest.
      settings: how.
      caller: the function that the user called.
    """
    asked = f"{caller}(bytes={most})"
    half = halved(
        *(params, trained, apply_fn, batch),
        choose=ways[0],
        settings=settings,
        asked=asked,
        most=most,
        caller=caller,
    )
    sizes, network = Sizes(params), half.start.first.network
    curves = widths.measured(
        *(half.source, half.dealt, half.start.parts),
        ways=[way(network)[0] for way in ways],
        options=half.options,
        size=sizes,
        asked=asked,
    )
    again = settings._replace(batches=None)  # of a loader that is read already

    def run(choice: Choice) -> Tried:
        methods = curves.methods(choice)
        done = adapted(
            *(params, trained, apply_fn, half.source.batch),
            choose=lambda network: (methods, half.start.skipped),
            settings=again,
            caller=caller,
        )
        changed = {k: done.leaves[k] for one in curves.joined for k in one.leaves}
        return Tried(sizes(changed), curves.moved(done.leaves), done)

    found = widths.settled(curves, most, run)
    if found.size > most:
        raise MethodError(
            f"{asked}: the smallest file has {found.size} bytes; give as many at "
            "least, prune further, or let more layers share values by include="
        )
    return Fitted(found.done, found.size)
