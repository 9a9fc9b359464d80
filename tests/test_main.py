import subprocess
import sys

import pytest

from medflax import main
from tests import nano

CONFIG = f"--config={nano.CONFIG}"


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    ([], "the following arguments are required: --config"),
    (["--config=configs/nothing.py"], "no config file configs/nothing.py"),
    ([f"{CONFIG}:variant=tny"], "unknown variant 'tny'; did you mean 'tiny'?"),
    ([f"{CONFIG}:variants=tiny"], "unknown config argument 'variants'; did you mean 'variant'?"),
    ([f"{CONFIG}:data=folders"], "unknown data 'folders'; did you mean 'folder'?"),
    ([CONFIG, "--workdri=x"], "unknown argument --workdri=x; did you mean '--workdir'?"),
    ([CONFIG, "stray"], "unknown argument stray"),
    ([CONFIG, "--config.seed"], "--config.seed needs a value"),
    ([CONFIG, "--config.train.num_steps=abc"], "config.train.num_steps must be int, got 'abc'"),
    ([CONFIG, "--config.optimizer.lrr=1"], "unknown field of config.optimizer 'lrr'"),
    ([CONFIG, "--config.model.tower.type=vot"], "unknown config.model.tower.type 'vot'"),
    ([CONFIG, "--config.evals.binding.type=few"], "unknown config.evals.binding.type 'few'"),
    ([CONFIG, "--config.mesh.tensor=3", "--dry_run"], "does not fit 1 device;"),
    ([CONFIG, "--config.mesh.data=0", "--dry_run"], "sizes are at least 1"),
    ([CONFIG, "--config.trainable=(", "--dry_run"], "not a regular expression"),
    ([CONFIG, "--config.optimizer.accumulate=3", "--dry_run"], "must be a multiple"),
    ([CONFIG, "--config.model.lm.vocab_size=9", "--dry_run"], "is too small"),
  ],
)
def test_mistakes_are_told_in_one_line(argv, message, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert main.main(argv) == 2
  out, err = capsys.readouterr()
  assert out == ""
  assert err.startswith("error: ") and message in err
  assert err.count("\n") == 1
  assert not list(tmp_path.iterdir())


def test_as_a_process_without_importing_jax(tmp_path):
  """The exit status and the silence are those of the real command, and jax is not waited for."""
  program = (
    "import sys; from medflax.main import main; status = main(sys.argv[1:]);"
    "assert 'jax' not in sys.modules; sys.exit(status)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program, CONFIG, "--config.optimizer.lrr=1"],
    cwd=nano.CONFIG.parent.parent,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  message = "error: unknown field of config.optimizer 'lrr'; did you mean 'lr'?\n"
  assert (done.stdout, done.stderr) == ("", message)


def test_dry_run_of_the_largest_variant(capsys):
  """Med-Flamingo's published number of trainable parameters; nothing is allocated."""
  assert main.main([f"{CONFIG}:variant=9b,data=folder", "--dry_run"]) == 0
  out = capsys.readouterr().out
  assert "1,309,919,248 trainable" in out
  assert "total, without activations" in out


def test_flags_are_split_from_overrides():
  flags, overrides = main.parse_flags(["--config=a.py:x=1", "--config.b.c=d=e", "--dry_run"])
  assert (flags.config, flags.workdir, flags.dry_run) == ("a.py:x=1", None, True)
  assert overrides == [("b.c", "d=e")]
