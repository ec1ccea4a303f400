"""Files of networks: what is left of them, exactly, in little room.

- ``dtypes``: dtypes by name, and arrays as the bit patterns of their entries.
- ``huffman``: Huffman's code of bytes.
- ``coders``: bytes as fewer bytes, by which none more come back than are asked for.
- ``masks``: which entries of a leaf are stored.
- ``values``: the values of these entries, as byte planes or as codes of a book.
- ``leaves``: what a file says of a leaf.
- ``layout``: the layout of safetensors, written and read with checks.
- ``encoding``: a leaf in the smallest of all forms.
- ``decoding``: the leaves of a file, checked.
- ``writing``: ``save``, which replaces an older file at once.
- ``sizes``: how large a file would be, without one.
- ``reading``: ``load``, into a tree or as a plain dict.
- ``contents``: ``describe``, a record that prints as a table.
"""

from nettrim_jax.files.contents import Contents, describe
from nettrim_jax.files.leaves import StoredLeaf
from nettrim_jax.files.reading import load
from nettrim_jax.files.writing import save

__all__ = ["Contents", "StoredLeaf", "describe", "load", "save"]
