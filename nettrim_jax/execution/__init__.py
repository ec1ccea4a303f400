"""Many layers: batched by shape, written back, measured."""
