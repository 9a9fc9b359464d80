"""Settings of all tests: the CPU, and property tests that are the same every time."""

import os

# Before anything imports jax: a test must not wait for, or differ by, an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis

# Examples are drawn from the test's own name, so a failure on one machine is one on all; the
# first call of a jitted function compiles, so single examples have no deadline.
hypothesis.settings.register_profile("medflax", derandomize=True, deadline=None)
hypothesis.settings.load_profile("medflax")
