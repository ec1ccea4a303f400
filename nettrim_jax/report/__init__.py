"""The report of a pruning, as records, as text and as plain data.

- ``records``: one entry per site, totals, and the leaves left alone.
- ``search``: what a search among networks measured.
- ``sharing``: what was done so that weights share few values.
- ``text``: the text of a report: a table of the layers, and lines below it.
- ``tables``: text of at most 100 columns, and lines about leaves that were left alone.
- ``plain_data``: the values of reports as plain data, and back.
- ``figures``: figures of a record that may be unknown, and are no leaves of it then.
"""

from nettrim_jax.report.records import Listing, Report, SiteInfo, SiteReport
from nettrim_jax.report.search import Margin, SearchStep, Split

__all__ = [
    "Listing",
    "Margin",
    "Report",
    "SearchStep",
    "SiteInfo",
    "SiteReport",
    "Split",
]
