"""What the network does on data."""
