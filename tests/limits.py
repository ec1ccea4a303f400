"""What a process that compiles hundreds of networks runs into."""

import pathlib

import jax

MAPS = pathlib.Path("/proc/self/maps")


def free_mappings():
    """Drops compiled programs before there are more memory mappings than may be."""
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 30000:
        jax.clear_caches()
