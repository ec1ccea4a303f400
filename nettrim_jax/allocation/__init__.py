"""Splits what a network may lose; only ``agent`` knows a particular method.

- ``routes``: the route of a pruning, by the budget or the share of its methods.
- ``levels``: the search for the number of weights of each layer in a share.
- ``widths``: the search for the bits of each layer within a number of bytes.
- ``deviation``: the search for the strength of each layer within a budget.
- ``factor``: one factor for all strengths, on prunings of whole networks.
- ``search``: the solves of single layers, for all searches.
- ``evaluation``: measurements of networks on some rows.
- ``budget``: pure functions that choose for a budget, given measured numbers.
- ``units``: a network without the units that a method chooses.
- ``together``: the weights of all layers as one vector, which one method prunes.
- ``sides``: which rows and columns of matrices are the units of a group.
- ``finished``: the result of a pruning.
- ``curves``: the split of weights or bytes by the layers' curves, as numbers.
- ``agent``: the units that the agents of a network do without, group by group.
"""
