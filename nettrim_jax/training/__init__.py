"""Fine-tuning under a mask."""
