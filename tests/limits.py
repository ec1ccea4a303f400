"""What a process that compiles hundreds of networks runs into."""

import pathlib

import jax

MAPS = pathlib.Path("/proc/self/maps")
MOST = pathlib.Path("/proc/sys/vm/max_map_count")


def free_mappings():
    """Drops compiled programs before there are more memory mappings than may be."""
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 0.7 * int(MOST.read_text()):
        jax.clear_caches()
