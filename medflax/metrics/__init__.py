"""Metrics: host-side NumPy and text; `bertscore` alone runs a model."""
