import contextlib
import pathlib
import sys

import pytest

from experiments import study as study_lib

FAKE = (sys.executable, str(pathlib.Path(__file__).with_name("fake_main.py")))

STUDY = '''"""Which image a token sees.

More about it.
"""

from experiments.study import vary

CONFIG = "configs/flamingo_med.py"
BASELINE = "media_rule=prev_image"
METRICS = ("binding/0shot/exact_match", "binding/4shot/exact_match", "binding/loss")
SEEDS = (0, 1)


def runs():
  return vary("config.data.media_rule", ("prev_image", "next_image"))
'''


@pytest.fixture
def study(tmp_path):
  """The file of a study of two media rules and two seeds."""
  path = tmp_path / "rules.py"
  path.write_text(STUDY)
  return path


@pytest.fixture
def fake_runs(monkeypatch):
  """Runs are made by fake_main.py."""
  monkeypatch.setattr(study_lib, "MAIN", FAKE)
  monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(study_lib.__file__).parents[1]))


def pids_in(folder):
  """Processes that were given a workdir in it."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    with contextlib.suppress(OSError):  # it has ended
      if f"\0--workdir={folder}/" in path.read_text():
        found.append(int(path.parent.name))
  return found
