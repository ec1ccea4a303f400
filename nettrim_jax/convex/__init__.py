"""The convex program of one layer and its solver; knows no model."""
