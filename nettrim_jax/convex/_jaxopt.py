"""The one import of jaxopt, whose notice of archival would break ``-W error``."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from jaxopt import prox

__all__ = ["prox"]
