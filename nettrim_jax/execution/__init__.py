"""Solves, writes and measures many layers together; knows no particular method.

- ``options``: the options of a pruning, as one record.
- ``engine``: some sites, of which similar ones are solved in one call.
- ``layer``: one site's answer, written into the leaves and measured.
- ``batching``: joining, splitting, and mapping a function over a stack of problems.
- ``orders``: all layers, at once or in order of execution.
"""
