"""Penalties on the weights, the ``g`` of ``min g(W) + f(Z)``, known by their prox.

A penalty is a frozen record of its own data. Users give it for ``W`` as a layer has
it, ``[d_in, d_out]``; ``T`` is the same penalty with one unit per row, ``[d_out,
d_in]``, which is how programs hold it. Its methods are pure; of most weight are:

- ``value(W)``;
- ``prox(W, step)``, the minimiser of ``g(V) + sum (V - W)^2 / (2 step)``, with
  positive steps that broadcast to ``W``;
- ``conjugate(A)``, with one unit per row, which shrinks the rows of ``A`` until
  ``g*`` is finite there and returns the shrinkage, ``[d_out]``, and ``g*`` at the
  shrunk matrix, so that any dual is turned into a bound.

Knows nothing of responses, programs or solvers.
"""

from nettrim_jax.convex import entrywise, groups

Entrywise = (
    entrywise.L1
    | entrywise.Box
    | entrywise.ElasticNet
    | entrywise.Nonnegative
    | entrywise.Sign
    | entrywise.FixedPattern
)
Groups = groups.GroupL1 | groups.SparseGroup
Penalty = Entrywise | Groups
