"""What the race measures: errors on held-out rows, compilation, memory."""

import ctypes
import pathlib
import re
import time

import jax
import jax.numpy as jnp

import nettrim_jax as nt
from nettrim_jax.calibration.capture import Draw, capture
from nettrim_jax.execution import layer
from nettrim_jax.methods.base import kind_of
from nettrim_jax.tracing import entries
from nettrim_jax.tracing.sites import trace

measure = jax.jit(layer.measure, static_argnames="kind")


class Compilation:
    """Seconds that JAX traced and compiled; nested spans count once."""

    def __init__(self):
        self.spans = []
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event, seconds, **_):
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            self.spans.append((end - seconds, end))

    def since(self, start):
        """Seconds of it after a moment."""
        total, last = 0.0, start
        for begin, end in sorted(self.spans):
            total += max(end - max(begin, last), 0.0)
            last = max(last, end)
        return total


class Memory:
    """By how much this process grows at most, in MiB."""

    def begin(self):
        """Notes what the process has now and forgets its peak, where Linux can."""
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what is free is to count again
            pathlib.Path("/proc/self/clear_refs").write_text("5")
            self.start = _status("VmRSS")
        except (OSError, AttributeError):
            self.start = None

    def peak(self):
        """Since ``begin``; on an accelerator all of it since the process began."""
        own = None if self.start is None else max(_status("VmHWM") - self.start, 0)
        device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return {"memory": own} | ({"device": device // 2**20} if device else {})


def _status(name):
    text = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)
    assert found, f"no {name} in /proc/self/status"
    return int(found[1]) // 1024


class Errors:
    """Errors of a case's layers on held-out rows, relative, after the activation."""

    def __init__(self, case):
        self.case, self.leaves = case, jax.tree.leaves(case.params)
        self.graph = trace(case.apply_fn, case.params, case.held)
        self.seen = self._seen(self.leaves)

    def of(self, params, mode):
        """Per layer: alone and fed as the trained network feeds it; in a cascade as
        the pruned network runs, against the trained one.
        """
        new, sites = jax.tree.leaves(params), self.graph.sites
        if mode == "parallel":
            pairs = zip(sites, self.seen, strict=True)
            return [float(self._alone(site, seen, new)) for site, seen in pairs]
        return [
            float(_distance(old.P, now.P, site.response == "relu"))
            for site, old, now in zip(sites, self.seen, self._seen(new), strict=True)
        ]

    def _seen(self, leaves):
        graph, key = self.graph, jax.random.key(0)  # the same rows of every network
        every, rows = tuple(range(len(graph.sites))), self.case.held_rows
        draw = Draw(every, rows, ((),) * len(every))
        inputs = [*leaves, *jax.tree.leaves(self.case.held)]
        return capture(graph, draw, graph.consts, inputs, key)[0]

    def _alone(self, site, seen, new):
        now, old = (entries.take(site, leaves, True) for leaves in (new, self.leaves))
        move = None
        if now.bias is not None:
            b, b0 = (bias.astype(seen.X.dtype) for bias in (now.bias, old.bias))
            move = (b - b0) * seen.gain
        return measure(seen, now.weights, move, kind_of(site, nt.NetTrim())).error


def _distance(want, got, relu):
    if relu:
        want, got = jnp.maximum(want, 0), jnp.maximum(got, 0)
    return jnp.linalg.norm(got - want) / jnp.linalg.norm(want)
