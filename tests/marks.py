"""Which parameters of a test are left to the slow set."""

import pytest

slow = pytest.mark.slow


def only_fast(fast, values):
    """The values as parameters; those that are not among the fast ones are slow."""
    assert set(fast) <= set(values), set(fast) - set(values)
    return [v if v in fast else pytest.param(v, marks=slow) for v in values]
