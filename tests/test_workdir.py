import json
import subprocess
import sys

import ml_collections
import pytest

from medflax import config as config_lib
from medflax import workdir as workdir_lib
from medflax.loading import load_config
from medflax.utils import UserError
from tests import nano

CONFIG = ml_collections.ConfigDict({"seed": 0, "checkpoint": {"allow_config_change": False}})


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_built(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"workdir .*file/run: .*file is a file"):
    workdir_lib.check(tmp_path / "file" / "run", CONFIG)
  monkeypatch.setattr(workdir_lib.os, "access", lambda *_: False)  # root may write anywhere
  with pytest.raises(UserError, match=r"is not writable; choose another --workdir"):
    workdir_lib.check(tmp_path / "a" / "run", CONFIG)
  assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  with (
    pytest.raises(UserError, match=r"Not a directory; choose another --workdir"),
    workdir_lib.opened(tmp_path / "file" / "run", CONFIG, {}),
  ):
    pass


@pytest.fixture
def old(tmp_path):
  """A run whose config has neither all sections nor all fields; `old(**more)` adds some."""

  def write(**more):
    saved = config_lib.to_dict(nano.config(tmp_path)) | more
    del saved["profile"], saved["train"]["hang_seconds"]
    (tmp_path / workdir_lib.CONFIG).write_text(json.dumps(saved))
    return tmp_path

  return write


def test_fields_newer_than_a_run_have_their_defaults_which_are_told(old, caplog):
  assert load_config(old()) == nano.config(old())
  (said,) = caplog.messages
  assert said.endswith("taken as train.hang_seconds = 1800.0, profile = {'steps': []}")
  assert workdir_lib.check(old(), nano.config(old())) == []
  with pytest.raises(UserError, match=r"\(train.hang_seconds: 1800.0 -> 9.0\)"):
    workdir_lib.check(old(), nano.config(old(), train__hang_seconds="9"))


def test_fields_that_nobody_knows_are_refused(old, tmp_path):
  with pytest.raises(UserError, match="unknown field of config 'sed'; did you mean 'seed'"):
    load_config(old(sed=1))
  with pytest.raises(UserError, match=r"\(sed: 1 -> '\(absent\)'\)"):
    workdir_lib.check(old(sed=1), nano.config(tmp_path))


def test_a_config_that_is_cut_short_is_told(tmp_path):
  (tmp_path / workdir_lib.CONFIG).write_text("{")
  with pytest.raises(UserError, match=r"config.json is not JSON; choose another --workdir"):
    load_config(tmp_path)


def test_one_process_writes_a_folder_and_none_that_was_killed_blocks_it(tmp_path):
  holds = (
    "import pathlib, sys, time; from medflax import workdir\n"
    "with workdir.locked(pathlib.Path(sys.argv[1]), ''):\n"
    "  print('held', flush=True); time.sleep(60)"
  )
  assert not workdir_lib.is_locked(tmp_path) and not any(tmp_path.iterdir())
  command = [sys.executable, "-c", holds, str(tmp_path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
    try:
      process.stdout.readline()
      assert workdir_lib.is_locked(tmp_path)
      with (
        pytest.raises(UserError, match=r"^workdir .*: another process is training here$"),
        workdir_lib.opened(tmp_path, CONFIG, {}),
      ):
        pass
      assert not (tmp_path / workdir_lib.CONFIG).exists()
    finally:
      process.kill()
  assert (tmp_path / workdir_lib.LOCK).exists() and not workdir_lib.is_locked(tmp_path)
  with workdir_lib.opened(tmp_path, CONFIG, {}):
    assert (tmp_path / workdir_lib.CONFIG).exists() and workdir_lib.is_locked(tmp_path)
