"""Golden files: weights, inputs and outputs of other implementations, where there are any."""

import json
import os
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

GOLDEN = pathlib.Path(
  os.environ.get("MEDFLAX_GOLDEN") or pathlib.Path(__file__).parents[2].parent / "shared/golden"
)


@pytest.fixture
def golden():
  """`golden(module, variant)` → weights by torch name, arrays `in.*` and `out.*`, config."""

  def load(module, variant):
    path = GOLDEN / module / variant
    if not path.parent.is_dir():
      pytest.skip(f"no golden files of {module} in {GOLDEN}; set MEDFLAX_GOLDEN")
    config = json.loads(path.with_suffix(".json").read_text())["config"]
    with np.load(path.with_suffix(".npz")) as arrays:
      return load_file(path.with_suffix(".safetensors")), dict(arrays), config

  return load
