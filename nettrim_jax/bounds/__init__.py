"""What the theorems allow the output to move."""
