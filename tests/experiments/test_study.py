"""Studies: combinators, names, what a bad file is told, and how far a run is."""

import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from experiments.study import (
  FINISHED,
  MISSING,
  RUNNING,
  UNFINISHED,
  chain,
  folder_name,
  load,
  product,
  vary,
  zipped,
)
from medflax.utils import UserError
from medflax.workdir import locked, opened
from tests.experiments.fake_main import finish

STUDIES = sorted((pathlib.Path(__file__).parents[2] / "experiments/studies").glob("*.py"))
values = st.lists(st.integers(0, 9), unique=True, max_size=4)


def test_values_may_have_names():
  assert vary("config.data.media_rule", ["a", "b"]) == [
    ("media_rule=a", {"config.data.media_rule": "a"}),
    ("media_rule=b", {"config.data.media_rule": "b"}),
  ]
  assert vary("peft", {"none": "frozen"}) == [("peft=none", {"peft": "frozen"})]
  assert vary("config.a.b", {"two": {"c": 1}}) == [("b=two", {"config.a.b": "{'c': 1}"})]


@hypothesis.given(values, values)
def test_a_product_has_every_combination(a, b):
  pairs = product(vary("a", a), vary("b", b))
  assert [tag for tag, _ in pairs] == [f"a={x},b={y}" for x in a for y in b]
  assert [given for _, given in pairs] == [{"a": str(x), "b": str(y)} for x in a for y in b]
  assert product(vary("a", a)) == vary("a", a)


@hypothesis.given(values, values)
def test_zipped_axes_go_together(a, b):
  if len(a) != len(b):
    with pytest.raises(UserError, match=f"axes of {len(a)} and {len(b)} values"):
      zipped(vary("a", a), vary("b", b))
  else:
    expected = [(f"a={x},b={y}", {"a": str(x), "b": str(y)}) for x, y in zip(a, b, strict=True)]
    assert zipped(vary("a", a), vary("b", b)) == expected


@hypothesis.given(values, values, values)
def test_a_chain_is_one_after_the_other(a, b, c):
  axes = vary("a", a), vary("b", b), vary("a", c)
  assert chain(*axes) == [*axes[0], *axes[1], *axes[2]]
  assert chain(axes[0], chain(*axes[1:])) == chain(*axes)


def test_an_axis_may_not_undo_another():
  with pytest.raises(UserError, match=r"^a=2: config\.a is set by two axes$"):
    product(vary("config.a", [1]), vary("config.a", [2]))


@hypothesis.given(st.text(max_size=300), st.text(max_size=300))
def test_tags_have_folders_of_their_own(a, b):
  name = folder_name(a)
  assert len(name.encode()) < 255 and name == name.lower()
  assert not {*"/\\:*?\"<>|' "} & {*name} and not name.startswith(".")
  assert (name == folder_name(b)) == (a == b)


@hypothesis.given(st.from_regex(r"[a-z0-9_=,+.-]{0,100}", fullmatch=True))
def test_plain_tags_are_their_folders(tag):
  assert folder_name(f"a{tag}") == f"a{tag}"


def test_a_study_is_loaded(study, tmp_path):
  loaded = load(f"{study}:variant=small", tmp_path / "out", [("data.max_tokens", "64")])
  assert (loaded.name, loaded.about) == ("rules", "Which image a token sees.")
  assert loaded.tags == ("media_rule=prev_image", "media_rule=next_image")
  assert [(run.tag[-10:], run.seed) for run in loaded.runs] == [
    *(("prev_image", 0), ("next_image", 0), ("prev_image", 1), ("next_image", 1))
  ]
  run = loaded.runs[3]
  assert run.name == "media_rule=next_image,seed=1" and run.workdir.parent == tmp_path / "out"
  assert run.command[-5:] == [
    "--config=configs/flamingo_med.py:variant=small",
    "--config.seed=1",
    "--config.data.max_tokens=64",
    "--config.data.media_rule=next_image",
    f"--workdir={tmp_path}/out/media_rule=next_image,seed=1",
  ]
  assert (run.config.seed, run.config.data.max_tokens) == (1, 64)
  assert run.config.variant == "small" and run.config.data.media_rule == "next_image"
  assert not (tmp_path / "out").exists()
  assert load(str(study)).folder == pathlib.Path("runs/rules").absolute()


@pytest.mark.parametrize(
  ("change", "complaint"),
  [
    (("CONFIG =", "CONFIGS ="), "rules.py: CONFIG is missing or of another type"),
    (("def runs", "def run"), "there is no function runs"),
    (("media_rule=prev", "media_rule=prove"), "the baseline .* is none of the runs: media_rule="),
    (('"next_image"', '"prev_image"'), "two runs are called media_rule=prev_image"),
    (("(0, 1)", "(0, 0)"), "two seeds are 0"),
    (
      ("data.media_rule", "data.media_rul"),
      "run media_rul=prev_image: .*did you mean 'media_rule'",
    ),
    (("  return", "  1 / 0\n  return"), r"rules.py:15: ZeroDivisionError: division by zero"),
    (("def runs()", "def runs(:"), r"rules.py:14: SyntaxError"),
    (("flamingo_med.py", "flaming_med.py"), "did you mean 'configs/flamingo_med.py'"),
    (("config.data.media_rule", "config.seed"), "run seed=prev_image: config.seed must be int"),
  ],
)
def test_a_bad_study_is_told_in_one_line(study, change, complaint):
  study.write_text(study.read_text().replace(*change))
  with pytest.raises(UserError, match=complaint) as error:
    load(str(study))
  assert "\n" not in str(error.value)


def test_runs_that_are_the_same_and_seeds_from_outside_are_refused(study):
  with pytest.raises(UserError, match="seeds are given as SEEDS"):
    load(str(study), overrides=[("seed", "7")])
  twice = '{"prev_image": "prev_image", "again": "prev_image"}'
  study.write_text(study.read_text().replace('("prev_image", "next_image")', twice))
  with pytest.raises(UserError, match="media_rule=prev_image and media_rule=again are the same"):
    load(str(study))


def test_no_such_study():
  with pytest.raises(UserError, match=r"no study experiments/studies/media_rules\.py; did"):
    load("experiments/studies/media_rules.py")


def test_how_far_a_run_is(study, tmp_path):
  run = load(str(study), tmp_path / "out").runs[0]
  assert run.state() == MISSING
  with opened(run.workdir, run.config, {}):
    assert run.state() == RUNNING
  assert run.state() == UNFINISHED
  finish(run.workdir, run.config)
  assert run.state() == FINISHED
  with locked(run.workdir, ""):
    assert run.state() == RUNNING
  (run.workdir / f"evals/binding/{run.config.train.num_steps}/results.json").unlink()
  assert run.state() == UNFINISHED
  other = load(str(study), tmp_path / "out", [("train.num_steps", "7")]).runs[0]
  with pytest.raises(UserError, match=r"has another config \(train\.num_steps: 1000 -> 7\)"):
    other.state()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_are_valid(path):
  loaded = load(str(path))
  assert len(loaded.tags) > 1 and loaded.metrics and len(loaded.about) < 100
