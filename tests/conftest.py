"""Settings of all tests: the CPU, and property tests that are the same every time.

Golden files are weights, inputs and outputs of other implementations, where there are any.
"""

import json
import os
import pathlib

# Before anything imports jax: a test must not wait for, or differ by, an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import numpy as np
import pytest
from safetensors.numpy import load_file

# Examples are drawn from the test's own name, so a failure on one machine is one on all; the
# first call of a jitted function compiles, so single examples have no deadline.
hypothesis.settings.register_profile("medflax", derandomize=True, deadline=None)
hypothesis.settings.load_profile("medflax")

GOLDEN = pathlib.Path(
  os.environ.get("MEDFLAX_GOLDEN") or pathlib.Path(__file__).parents[1].parent / "shared/golden"
)


@pytest.fixture
def golden_folder():
  """`golden_folder(module)` → the folder of a module's golden files; skips without."""

  def find(module):
    if not (GOLDEN / module).is_dir():
      pytest.skip(f"no golden files of {module} in {GOLDEN}; set MEDFLAX_GOLDEN")
    return GOLDEN / module

  return find


@pytest.fixture
def golden(golden_folder):
  """`golden(module, variant)` → weights by torch name, arrays `in.*` and `out.*`, config."""

  def load(module, variant):
    path = golden_folder(module) / variant
    config = json.loads(path.with_suffix(".json").read_text())["config"]
    with np.load(path.with_suffix(".npz")) as arrays:
      return load_file(path.with_suffix(".safetensors")), dict(arrays), config

  return load
