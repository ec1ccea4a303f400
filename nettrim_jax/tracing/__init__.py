"""Traces a network and finds its sites in the jaxpr; knows no solver.

- ``primitives``: operations of newer versions of JAX in the words of older ones.
- ``call``: the jaxpr of ``apply_fn``, or an error that says how it is called.
- ``jaxprs``: a jaxpr as a flat program, and its evaluation.
- ``untyped``: a jaxpr as it would be on one device.
- ``blocks``: a ``shard_map`` as a ``vmap`` over blocks.
- ``index_maps``: operations that only move the entries of a leaf.
- ``dataflow``: for each value, which leaf it is and by which factors, what it depends
  on, and along which axes it varies.
- ``constants``: values that depend on neither the params nor the batch.
- ``folding``: one linear operation as a stack of matrix products.
- ``clips``: the limits between which a value passes, as of a ReLU.
- ``epilogue``: the operations after a linear one, up to a clip such as a ReLU.
- ``uses``: the uses of every leaf, linear or not.
- ``signs``: signs that a network runs as in training.
- ``labels``: what an axis has to do with the axes of the rows' weights.
- ``axis_rules``: what each operation does with these labels.
- ``axes``: follows them through a program, from the batch to the rows of each layer.
- ``sites``: ``trace``, which makes a network with its sites.
- ``canonical``: a segment of a network in numbers of its own, so that like ones are
  compiled once.
- ``matching``: finds the outputs of one program among the values of another.
- ``outer``: matrices that meet one row, whose derivatives are outer products.
- ``entries``: reads and writes a site's entries of leaves, and makes the mask.
"""
