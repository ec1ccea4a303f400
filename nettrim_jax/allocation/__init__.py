"""One budget for the whole network."""
