"""Leakage: what a test set shares with the training data. See docs/data.md."""
