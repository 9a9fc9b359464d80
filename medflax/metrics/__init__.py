"""Metrics: host-side NumPy and text, no jax."""
