"""Asking a run's model: files and arrays, one by one and together, with support and choices."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from medflax import api
from medflax.tools.evaluate import evaluate
from medflax.utils import UserError
from tests import nano


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return nano.write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def model(images, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "a"
  return api.load(nano.train(nano.config(images, train__num_steps="2"), workdir))


def short(model, question="Colour?", **options):
  return model.ask(question, decoding={"max_new_tokens": 3}, **options)


def test_an_answer_and_its_candidates(model, images):
  shown = [api.Example("Colour?", "red", images=[images / "0.png"])]
  answer = short(model, images=[images / "3.png"], support=shown, choices=("red", "blue"))
  assert answer.stop in ("length", "stop_token", "stop_string")
  assert [candidate.text for candidate in answer.candidates] == ["red", "blue"]
  assert all(candidate.logprob < 0 for candidate in answer.candidates)
  assert math.fsum(candidate.probability for candidate in answer.candidates) == pytest.approx(1)


def test_a_batch_answers_as_its_questions_one_by_one(model, images):
  shown = [api.Example("Colour?", x, images=[images / f"{i}.png"]) for i, x in enumerate("rb")]
  queries = [
    api.Query(
      "Colour?" if i % 2 else "Which colour does this one have, if any?",
      images=[images / f"{i}.png"],
      support=shown[: i % 3],
      choices=("red", "blue", "neither of the two")[: 2 + i % 2],
    )
    for i in range(5)
  ]
  together = model.ask_all(queries, decoding={"max_new_tokens": 3}, batch_size=4)
  for query, answer in zip(queries, together, strict=True):
    [alone] = model.ask_all([query], decoding={"max_new_tokens": 3})
    assert (alone.text, alone.stop) == (answer.text, answer.stop)
    for one, other in zip(alone.candidates, answer.candidates, strict=True):
      assert one.text == other.text
      assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_arrays_are_files_that_were_read(model, images):
  array = np.asarray(Image.open(images / "3.png"))
  one = short(model, images=[images / "3.png"], choices=("red", "blue"))
  assert short(model, images=[array], choices=("red", "blue")) == one
  other = short(model, images=[255 - array], choices=("red", "blue"))
  assert other.candidates != one.candidates


def test_support_matters_and_may_be_text_alone(model, images):
  bare = short(model, images=[images / "3.png"], choices=("red",))
  shown = [api.Example("Colour?", "blue")]
  assert short(model, images=[images / "3.png"], support=shown, choices=("red",)) != bare
  assert short(model, choices=("red",)) != bare


def test_answers_held_to_the_choices(model, images):
  answer = short(model, images=[images / "3.png"], choices=("red", "blue"), constrained=True)
  assert answer.text in ("red", "blue")
  beam = {"type": "beam", "num_beams": 2, "max_new_tokens": 2}
  assert model.ask("Colour?", images=[images / "3.png"], decoding=beam).text
  with pytest.raises(UserError, match="constrained answers need choices"):
    short(model, images=[images / "3.png"], constrained=True)


def test_it_answers_as_an_evaluation_does(model, images, tmp_path):
  """What stands in samples.jsonl is what `ask` says."""
  section = dict(type="fewshot_vqa", every=0, task="vqa", split="test", num_shots=(0,))
  section |= dict(batch_size=4, decoding=dict(max_new_tokens=3), controls=(), num_pictured=0)
  [results] = evaluate(model.loaded, tmp_path, {"a": section})
  lines = (results.parent / "samples.jsonl").read_text().splitlines()
  assert len(lines) == 4
  for line in map(json.loads, lines):
    answer = short(model, line["question"], images=[images / f"{line['id']}.png"])
    assert (answer.text, answer.stop) == (line["prediction"], line["stop"])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"images": ["nowhere.png"]}, "nowhere.png cannot be read"),
    ({"volumes": [np.zeros((2, 8, 8, 1), np.uint8)]}, "the model takes no volume, but image"),
    ({"decoding": {"type": "beams"}}, "'beams'; did you mean 'beam'"),
    ({"decoding": {"num_beam": 3}}, "num_beam"),
  ],
)
def test_mistakes_are_told(model, options, message):
  with pytest.raises(UserError, match=message):
    model.ask("Colour?", **options)


def test_what_is_no_model(tmp_path):
  with pytest.raises(UserError, match="is not a run"):
    api.load(tmp_path)
