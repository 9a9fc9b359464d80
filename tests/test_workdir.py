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
