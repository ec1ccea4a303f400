"""Bounds how far a pruning moves the network's output; knows no solver.

- ``output``: the bounds of the theorems on one batch, found by running the network.
- ``streams``: the trained and the pruned network's values, side by side.
- ``lipschitz``: how an operation propagates an error, one rule per primitive.
- ``slopes``: upper bounds on the slopes of scalar functions.
- ``products``: norms of matrix products and convolutions as maps of one operand.
- ``spectral``: upper bounds on the norms of matrices and of convolution kernels.
- ``normal_form``: ``link_normalize``, the normal form of the papers.
"""
