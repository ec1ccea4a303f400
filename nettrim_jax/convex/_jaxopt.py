"""The one import of jaxopt.

jaxopt warns that it is archived, which is an error under ``-W error``.
Knows jaxopt; knows no penalty.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from jaxopt import prox

__all__ = ["prox"]
