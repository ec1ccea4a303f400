"""Runs the network on data; knows no solver and no method.

- ``model``: the network as the user gave it, with the arrays of its params.
- ``batches``: one batch, or all batches of a loader, each with its traced network.
- ``splits``: a batch split into rows to solve on, to steer a search and to check it.
- ``padding``: which rows of each layer count, by the weights of samples or positions.
- ``capture``: rows of each layer's inputs and responses, drawn in one run.
- ``infinities``: infinities that are meant, and those that reach a layer.
- ``cascade``: the network in segments, for a trained and a pruned stream.
- ``statistics``: the sums over rows or batches that a method may ask for.
- ``sensitivity``: how far errors of each layer move the output, by back-propagation.
- ``gradient``: the derivatives of the user's loss by each weight.
- ``samples``: a batch as samples, and the programs of what is differentiated.
- ``jacobians``: sums over samples of products of derivatives by the weights.
- ``curvature``: second derivatives by single weights, as sums over samples.
- ``gates``: the derivatives of the user's loss by a factor of each unit.
- ``responses``: what follows each layer, in one run.
- ``minibatches``: batches of one size for many steps, and some that no step sees.
- ``outputs``: how far the network's outputs moved.
"""
