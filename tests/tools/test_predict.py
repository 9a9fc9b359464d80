"""Asking from the command line."""

import pytest

from medflax.tools.predict import examples, main
from medflax.utils import UserError
from tests import nano


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return nano.write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def workdir(images, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "a"
  return nano.train(nano.config(images, train__num_steps="2"), workdir)


def ask(workdir, images, *flags):
  short = ["--decoding", "max_new_tokens=2"]
  given = ["--image", str(images / "5.png"), "--question", "Colour?"]
  return main([str(workdir), *given, *short, *flags])


def test_the_answer_its_end_and_the_choices(workdir, images, capsys):
  example = ["--example", str(images / "0.png"), "Colour?", "red"]
  held = ["--constrained", "--decoding", "max_new_tokens=8"]
  assert ask(workdir, images, "--choices", "red, blue", *example, *held) == 0
  answer, stop, head, red, blue = capsys.readouterr().out.splitlines()
  assert answer.split() in (["answer", "red"], ["answer", "blue"])
  assert stop.startswith("stop    stop") or stop == "stop    length"
  assert head.split() == ["choice", "log-probability", "probability"]
  assert (red.split()[0], blue.split()[0]) == ("red", "blue")
  assert float(red.split()[2]) + float(blue.split()[2]) == pytest.approx(1, abs=2e-3)


def test_a_config_file_takes_the_weights_of_a_run(workdir, images, capsys):
  assert ask(workdir, images) == 0
  answer = capsys.readouterr().out
  overrides = nano.OVERRIDES | {"data.root": str(images), "train.num_steps": "2"}
  flags = [f"--config.{name}={text}" for name, text in overrides.items()]
  config = f"{nano.CONFIG}:data=folder"
  assert ask(config, images, "--checkpoint", str(workdir), *flags) == 0
  assert capsys.readouterr().out == answer


def test_support_of_a_manifest(workdir, images, capsys):
  shown = examples(images / "manifest.jsonl")
  assert [example.answer for example in shown[:2]] == ["red", "blue"]
  assert shown[0].images == [images / "0.png"]
  rows = (images / "manifest.jsonl").read_text().splitlines()
  (images / "two.jsonl").write_text("\n".join(rows[:2]))
  assert ask(workdir, images, "--choices", "red") == 0
  alone = capsys.readouterr().out
  assert ask(workdir, images, "--choices", "red", "--support", str(images / "two.jsonl")) == 0
  assert capsys.readouterr().out != alone
  (images / "bad.jsonl").write_text('{"id": "a"}\n')
  with pytest.raises(UserError, match="line 1: has no media"):
    examples(images / "bad.jsonl")


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--image", "no.png"], "no.png cannot be read"),
    (["--volume", "a.nii.gz"], "the model takes no volume"),
    (["--decoding", "beams"], "--decoding beams: write NAME=VALUE"),
    (["--support", "no.jsonl"], "--support no.jsonl"),
    (["--step", "9"], "no complete checkpoint of step 9"),
    (["--config.seed=1"], "has its config; use --config=FILE.py"),
    (["--choice=a"], "unrecognized arguments: --choice=a"),
  ],
)
def test_mistakes_are_one_line(workdir, images, flags, message, capsys):
  assert ask(workdir, images, *flags) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert message in error
