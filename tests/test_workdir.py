import subprocess
import sys

import ml_collections
import pytest

from medflax import workdir as workdir_lib
from medflax.utils import UserError

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
