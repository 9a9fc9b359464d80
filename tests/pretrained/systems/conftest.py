"""Imports by the command line, and their exports."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from medflax.pretrained import load_weights
from medflax.pretrained.files import open_checkpoint
from medflax.tools import export_weights, import_weights


@dataclasses.dataclass
class Imported:
  """What an import has written."""

  folder: pathlib.Path

  @property
  def sections(self):
    return json.loads((self.folder / import_weights.CONFIG).read_text())

  @property
  def peft(self):
    path = self.folder / import_weights.PEFT
    return json.loads(path.read_text()) if path.exists() else {}

  @property
  def weights(self):
    weights = load_weights(self.folder / import_weights.WEIGHTS)
    return {path: np.asarray(x) for path, x in weights.items()}

  def assert_goes_back(self, theirs, *, but=()):
    """The export has every tensor, bit for bit, but those without a place in the model."""
    to = self.folder / "back"
    assert export_weights.main([str(self.folder), "--to", str(to)]) == 0
    back = {key: np.asarray(x) for key, x in open_checkpoint(to).items()}
    assert back.keys() == {key for key in theirs if not key.startswith(tuple(but))}
    for key, x in back.items():
      np.testing.assert_array_equal(x, theirs[key], err_msg=key)


@pytest.fixture
def run_import(tmp_path):
  """Imports by the tool: `run_import(source, path, *flags) -> Imported`."""
  folders = (tmp_path / f"ours{i}" for i in range(9))

  def run(source, path, *flags):
    folder = next(folders)
    arguments = [source, path, "--to", folder, *flags]
    assert import_weights.main([str(x) for x in arguments]) == 0
    return Imported(folder)

  return run


@pytest.fixture
def refused(tmp_path, capsys):
  """The line that the tool ends with: `refused(source, path, *flags) -> str`."""

  def run(source, path, *flags):
    arguments = [source, path, "--to", tmp_path / "refused", *flags]
    assert import_weights.main([str(x) for x in arguments]) == 2
    assert not (tmp_path / "refused").exists()
    return capsys.readouterr().err

  return run
