"""Makes networks really smaller: finds units in any program, and removes them.

- ``ids``: numbers of indices, which of them go together, and which have to stay.
- ``values``: what is known of a value, per axis.
- ``registry``: the table of rules, one per primitive, and what all of them need.
- ``elementwise``: rules of operations that treat every entry alike.
- ``shapes``: rules of operations that merge, split and spread axes.
- ``pieces``: rules of operations that cut axes and put them together.
- ``contractions``: rules of products that sum over axes of both operands.
- ``convolutions``: the rule of convolutions, in groups of channels or not.
- ``reductions``: rules of sums, windows and orders along an axis.
- ``indexing``: rules of operations that index at run time.
- ``sources``: rules of counters and random bits.
- ``loops``: rules of loops, steps of a scan, and branches.
- ``walk``: follows all axes through a jaxpr by these rules.
- ``evaluate``: runs a program of which indices are removed.
- ``calls``: rules of calls that keep their own derivatives, and of rematerialised ones.
- ``rules``: all rules, loaded.
- ``program``: a network as a program whose axes were followed.
- ``records``: what can be removed, as records that print as a table.
- ``groups``: ``units``, the groups of units that can be removed, and what cannot.
- ``cutting``: which indices of which leaves go, and leaves without them or zero there.
- ``dead``: units without a weight out, and constants that the next bias can take.
- ``marking``: which indices of a program go with some units, and its costs then.
- ``counting``: multiply-adds and activations of a program.
- ``sizes``: the report of a smaller network.
- ``removal``: ``shrink``, a network without some of its units.
- ``rounds``: what ``trim`` returns, records of its rounds that print as a table.
"""

from nettrim_jax.structure.cutting import Leaf
from nettrim_jax.structure.groups import units
from nettrim_jax.structure.records import Entry, Group, Refusal, Structure
from nettrim_jax.structure.removal import Small, shrink
from nettrim_jax.structure.rounds import Round, Trimmed
from nettrim_jax.structure.sizes import Change, GroupSize, SizeReport

__all__ = [
    "Change",
    "Entry",
    "Group",
    "GroupSize",
    "Leaf",
    "Refusal",
    "Round",
    "SizeReport",
    "Small",
    "Structure",
    "Trimmed",
    "shrink",
    "units",
]
