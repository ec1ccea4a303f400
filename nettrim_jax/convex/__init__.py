"""Solves the convex program of one layer; knows no model and no network.

- ``penalties``: the union types of all penalties, and the methods of a penalty.
- ``entrywise``: penalties of single weights: magnitudes, squares and limits.
- ``groups``: penalties of groups of weights.
- ``masked``: any penalty, with some weights that have to be zero.
- ``responses``: the requirement on the response.
- ``programs``: the program, its objective and its dual bound.
- ``build``: makes a program from arrays, and checks them.
- ``projection``: the projection on the graph of a program, and its factor.
- ``config``: ``ADMM``, the settings of the solver.
- ``solution``: the records that a solve returns.
- ``step``: one step of ADMM, and the states to start from.
- ``certificate``: the gap of a point, and the bound that rounding does not spoil.
- ``stage``: the two stages of a solve: steps in one distance, with checks in between.
- ``admm``: ``solve`` and ``history``, stage by stage.
- ``implicit``: derivatives of a fixed point, by the implicit function theorem.
- ``derivatives``: derivatives of a solution with respect to its program.
- ``path``: solutions of one program for a series of budgets.
- ``least_squares``: a least-squares fit of the weights on a fixed support.
- ``cvxpy``: a program as a problem of cvxpy.
- ``_jaxopt``: the one import of jaxopt.
"""
