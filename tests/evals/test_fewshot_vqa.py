"""The few-shot evaluator with a model that answers what the query's pixels show."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from medflax.data.documents import Episode
from medflax.evals import EVALUATORS, fewshot_vqa, progress, scoring
from medflax.evals.answering import Answerer
from medflax.inference.features import FeatureStore
from medflax.metrics.scorers import METRICS
from medflax.utils import UserError

CONFIG = {
  "type": "fewshot_vqa",
  "every": 0,
  "task": "side",
  "num_shots": [0, 1, 4],
  "num_episodes": 12,
  "batch_size": 8,
  "num_pictured": 2,
}


def evaluate(context, params, step=7, **changes):
  evaluator = EVALUATORS["fewshot_vqa"]("side", CONFIG | changes, context)
  metrics = evaluator.run(params, step)
  folder = context.workdir / "evals" / "side" / str(step)
  lines = (folder / "samples.jsonl").read_text().splitlines()
  results = json.loads((folder / "results.json").read_text())
  return metrics, results, [json.loads(line) for line in lines], folder


def test_oracle_is_right_and_blind_controls_are_not(make_context, lungs, params):
  metrics, results, samples, _ = evaluate(make_context(lungs), params)
  for shots in (0, 1, 4):
    prefix = f"side/{shots}shot"
    assert metrics[f"{prefix}/exact_match"].value == 1
    assert metrics[f"{prefix}/exact_match@no_image"].value == 0
    assert metrics[f"{prefix}/exact_match@text_only"].value == 0
    assert metrics[f"{prefix}/exact_match@shuffled"].value < 1
    assert metrics[f"{prefix}/chance"].value == pytest.approx(1 / 3)
    assert metrics[f"{prefix}/majority"].value == pytest.approx(1 / 3)
    assert {m.n for name, m in metrics.items() if name.startswith(prefix)} == {12}
  assert list(results["metrics"]) == list(metrics)
  assert results["metrics"] == {name: value.to_json() for name, value in metrics.items()}
  assert (results["task"], results["task_version"], results["step"]) == ("side", "1.2.0", 7)
  assert results["notes"] == []
  assert results["programs"] == {"embed": 1, "generate": 2}
  assert len(samples) == 3 * 4 * 12


def test_answers_are_scored_by_every_metric_that_is_asked_for(make_context, lungs, params):
  metrics, results, samples, _ = evaluate(
    make_context(lungs), params, num_shots=(0,), metrics=("token_f1", "bleu1")
  )
  assert {name.split("/")[2].split("@")[0] for name in metrics} == {
    *("token_f1", "bleu1", "chance", "majority")
  }
  assert list(results["scorers"]) == ["token_f1", "bleu1"]
  assert "nltk" in results["scorers"]["bleu1"]
  shown = [sample for sample in samples if sample["condition"] == "shuffled"]
  pairs = [(s["prediction"], [s["answer"]]) for s in shown]
  want = METRICS["token_f1"].samples(*zip(*pairs, strict=True)).mean()
  assert metrics["side/0shot/token_f1@shuffled"].value == pytest.approx(want)
  assert 0 < want < 1


def test_slices_are_reported_by_themselves(make_context, lungs, params, monkeypatch):
  plain = lungs.sample

  def sample(group, question=0):
    meta = {"turn": ("a/b", "late")[question], "case": group}
    return dataclasses.replace(plain(group, question), meta=meta)

  monkeypatch.setattr(lungs, "sample", sample)
  monkeypatch.setattr(scoring, "MAX_SLICES", 5)
  metrics, results, samples, _ = evaluate(
    make_context(lungs), params, slice_by=["task", "turn", "case", "scanner"]
  )
  names = {name.rsplit("/", 2)[0] for name in metrics}
  assert names == {"side", "side/a-b", "side/late"}  # one task, no scanner: nothing to slice
  late = metrics["side/late/4shot/exact_match@shuffled"]
  correct = [
    s["correct"]
    for s in samples
    if (s["meta"]["turn"], s["num_shots"], s["condition"]) == ("late", 4, "shuffled")
  ]
  assert (late.n, late.value) == (6, pytest.approx(np.mean(correct)))
  assert results["notes"] == ["slice_by: the 6 values of case are too many to show"]


def test_samples_tell_everything(make_context, lungs, params):
  _, _, samples, _ = evaluate(make_context(lungs), params)
  [first] = [s for s in samples if (s["id"], s["num_shots"], s["condition"]) == ("2-1", 1, "image")]
  assert first == {
    "id": "2-1",
    "group": "patient 2",
    "task": "side",
    "num_shots": 1,
    "seed": 0,
    "condition": "image",
    "question": "What is seen, at once?",
    "answer": "3.5 cm",
    "prediction": "3.5 cm",
    "correct": True,
    "scores": {"exact_match": 1.0},
    "candidates": [],
    "stop": "stop_token",
    "choices": ["left lung", "right lung", "3.5 cm"],
    "meta": {"plane": "axial"},
    "media": [],
    "support": [
      {
        "id": "3-0",
        "question": "What is seen, in this long-winded question?",
        "answer": "left lung",
        "media": [],
      }
    ],
  }


def test_shuffled_media_are_one_foreign_patients(make_context, lungs, params):
  _, _, samples, _ = evaluate(make_context(lungs), params)
  foreign = {}
  for sample in samples:
    if sample["condition"] == "shuffled" and sample["num_shots"] == 0:
      foreign.setdefault(sample["group"], set()).add(sample["prediction"])
  assert all(len(predictions) == 1 for predictions in foreign.values())
  # A permutation of the patients keeps how often each class is shown.
  assert sorted(p for [p] in foreign.values()) == sorted(["left lung", "right lung", "3.5 cm"] * 2)


def test_media_that_several_evaluators_show_are_embedded_once(
  make_context, lungs, params, monkeypatch
):
  context, embedded = make_context(lungs), []
  plain = fewshot_vqa.embed_with

  def embed_with(*args):
    def embed(media):
      embedded.append(media["image"].any(axis=(1, 2, 3, 4)).sum())  # not the blank one
      return plain(*args)(media)

    return embed

  monkeypatch.setattr(fewshot_vqa, "embed_with", embed_with)
  evaluators = [
    EVALUATORS["fewshot_vqa"](name, CONFIG | {"num_shots": shots}, context)
    for name, shots in {"few": [0, 1], "many": [4]}.items()
  ]

  def results(store):
    embedded.clear()
    for evaluator in evaluators:
      evaluator.run(params, 7, store())
    paths = sorted(context.workdir.glob("evals/*/7/*.json*"))
    return sum(embedded), [path.read_bytes() for path in paths]

  shared = FeatureStore()
  (once, together), (twice, apart) = results(lambda: shared), results(FeatureStore)
  assert (once, twice) == (lungs.num_groups, 2 * lungs.num_groups)
  assert len(together) == 4
  assert together == apart


def test_pictures_stand_where_samples_say(make_context, lungs, params):
  _, _, samples, folder = evaluate(make_context(lungs), params)
  pictured = [s for s in samples if s["media"]]
  assert len(pictured) == 3 * 2
  assert all(s["condition"] == "image" for s in pictured)
  named = [path for s in pictured for part in (s, *s["support"]) for path in part["media"]]
  assert len(set(named)) == len(named) == 2 * (1 + 2 + 5)
  assert {str(p.relative_to(folder)) for p in folder.rglob("*.png")} == set(named)
  assert np.asarray(Image.open(folder / named[0])).shape == (4, 4)


def test_same_inputs_same_bytes(make_context, lungs, params):
  *_, folder = evaluate(make_context(lungs), params)
  read = lambda: {p.name: p.read_bytes() for p in folder.rglob("*.*") if p.is_file()}
  before = read()
  evaluate(make_context(lungs), params)
  assert read() == before
  evaluate(make_context(lungs), params, batch_size=4)  # other programs, the same numbers
  alone = lambda files: json.loads(files.pop("results.json")) | {"programs": None}
  after = read()
  assert alone(after) == alone(before)
  assert after == before


def test_length_is_a_reason_to_stop(make_context, lungs, params):
  _, _, samples, _ = evaluate(make_context(lungs), params, decoding={"max_new_tokens": 1})
  assert {s["stop"] for s in samples if s["answer"] == "left lung"} == {"length"}


def test_volumes_and_several_media(make_context, lungs, params):
  lungs.kinds = ("image", "volume")
  metrics, results, samples, folder = evaluate(make_context(lungs), params, num_shots=[1])
  assert metrics["side/1shot/exact_match"].value == 1
  assert results["programs"] == {"embed": 2, "generate": 1}
  assert [len(samples[0]["media"]), len(samples[0]["support"][0]["media"])] == [2, 2]
  assert np.asarray(Image.open(folder / samples[0]["media"][1])).shape == (4, 8)


def test_questions_without_media(make_context, lungs, params):
  lungs.kinds = ()
  metrics, results, samples, _ = evaluate(make_context(lungs), params, num_shots=[1])
  assert {s["prediction"] for s in samples} == {"unknown"}
  assert "side/1shot/exact_match@no_image" not in metrics
  assert results["notes"][1] == "1shot@no_image leaves out 12 of 12 questions: they have no media"
  assert results["programs"] == {"embed": 0, "generate": 1}


def test_a_control_that_cannot_be_run_is_told(make_context, lungs, params):
  lungs.num_groups = 1
  metrics, results, _, _ = evaluate(make_context(lungs), params, num_shots=[0])
  assert "side/0shot/exact_match@shuffled" not in metrics
  assert "side/0shot/exact_match@no_image" in metrics
  [note] = results["notes"]
  assert note.startswith("0shot@shuffled leaves out 2 of 2 questions: no example and no other")


@pytest.mark.parametrize("culprit", ["id", "group"])
def test_leaks_are_refused(make_context, lungs, params, culprit):
  class Leaky(type(lungs)):
    def episodes(self, task, split, num_shots, num_episodes=None):
      shot = self.sample(0, 0 if culprit == "id" else 1)
      return [Episode(self.sample(0), (shot,) * num_shots)]

  with pytest.raises(UserError, match="'0-0' of group 'patient 0' would be evaluated with"):
    evaluate(make_context(Leaky()), params, num_shots=[1])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"tusk": "side"}, "unknown field config.evals.side.tusk; did you mean 'task'"),
    ({"task": "sides"}, "lungs has no task 'sides'; did you mean 'side'"),
    ({"controls": ["shufled"]}, "controls: unknown 'shufled'; did you mean 'shuffled'"),
  ],
)
def test_bad_settings_fail_when_built(make_context, lungs, changes, message):
  with pytest.raises(UserError, match=message):
    EVALUATORS["fewshot_vqa"]("side", CONFIG | changes, make_context(lungs))


def test_a_missing_field_is_named(make_context, lungs):
  with pytest.raises(UserError, match=r"config\.evals\.x lacks the field 'task'"):
    EVALUATORS["fewshot_vqa"]("x", {"type": "fewshot_vqa", "every": 0}, make_context(lungs))


def test_a_killed_evaluation_goes_on_and_ends_in_the_same_bytes(
  make_context, lungs, params, monkeypatch
):
  context, settings = make_context(lungs), dict(batch_size=4, num_pictured=0)
  folder = evaluate(context, params, **settings)[-1]
  read = lambda: {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
  before = read()
  assert sorted(before) == ["results.json", "samples.jsonl"]
  asked, plain = [], Answerer._read
  monkeypatch.setattr(Answerer, "_read", lambda *args: asked.append(1) or plain(*args))
  evaluate(context, params, **settings)
  whole = len(asked)
  asked.clear()

  def dies(self, launched, questions):
    if len(asked) == 5:
      raise KeyboardInterrupt
    asked.append(len(questions))
    return plain(self, launched, questions)

  (folder / "results.json").unlink()
  monkeypatch.setattr(Answerer, "_read", dies)
  with pytest.raises(KeyboardInterrupt):
    evaluate(context, params, **settings)
  kept = folder / progress.FILE
  assert len(kept.read_text().splitlines()) == 1 + 5
  kept.write_text(kept.read_text()[:-9])  # the last line is cut short
  asked.clear()
  monkeypatch.setattr(Answerer, "_read", lambda *args: asked.append(1) or plain(*args))
  evaluate(context, params, **settings)
  assert read() == before
  assert len(asked) == whole - 4


def test_replies_of_other_settings_are_asked_anew(make_context, lungs, params):
  context = make_context(lungs)
  folder = evaluate(context, params, num_shots=[1])[-1]
  (folder / progress.FILE).write_text('another fingerprint\n[0, [["wrong", "length", []]]]\n')
  metrics = evaluate(context, params, num_shots=[1])[0]
  assert metrics["side/1shot/exact_match"].value == 1


def test_candidates_are_weighed(make_context, lungs, params):
  metrics, results, samples, _ = evaluate(
    make_context(lungs),
    params,
    num_shots=[1],
    candidates="choices",
    metrics=["exact_match", "likelihood_accuracy"],
  )
  assert metrics["side/1shot/likelihood_accuracy"].value == 1
  assert metrics["side/1shot/likelihood_accuracy@text_only"].value < 1
  assert results["candidates"] == "choices" and results["coverage"] == 1
  for sample in samples:
    assert [c["text"] for c in sample["candidates"]] == sample["choices"]
    assert sum(c["probability"] for c in sample["candidates"]) == pytest.approx(1)
    if sample["condition"] == "image":
      best = max(sample["candidates"], key=lambda c: c["probability"])
      assert best["text"] == sample["answer"]


def test_answers_can_be_held_to_a_file_of_candidates(make_context, lungs, params, tmp_path):
  (tmp_path / "answers.txt").write_text("left lung\nliver\n\n")
  settings = dict(num_shots=[0], candidates=str(tmp_path / "answers.txt"), constrained=True)
  _, results, samples, _ = evaluate(make_context(lungs), params, **settings)
  assert {s["prediction"] for s in samples} <= {"left lung", "liver"}
  assert results["coverage"] == pytest.approx(1 / 3)
  with pytest.raises(UserError, match="candidates: 'nowhere' is neither 'choices' nor 'train'"):
    evaluate(make_context(lungs), params, candidates="nowhere")
  with pytest.raises(UserError, match=r"constrained needs config\.evals\.side\.candidates"):
    evaluate(make_context(lungs), params, constrained=True)


def test_a_prompt_of_its_own(make_context, lungs, params):
  settings = dict(num_shots=[0], prompt={"question": "Q: {question} A:"})
  _, results, _, _ = evaluate(make_context(lungs), params, **settings)
  assert results["prompt"]["question"] == "Q: {question} A:"
  with pytest.raises(UserError, match=r"unknown field of config\.evals\.side\.prompt 'qestion'"):
    evaluate(make_context(lungs), params, prompt={"qestion": ""})
