"""Classifier, experts, prompt and language model together; each a stand-in but the prompt."""

import numpy as np
import pytest

from medflax import api
from medflax.data.tokenizer import load_tokenizer
from medflax.experts.classifier import Routed
from medflax.experts.registry import expert
from medflax.experts.system import Question, System, consulted
from medflax.experts.templates import PROMPTS
from medflax.utils import UserError

DARK, LIGHT = np.zeros((4, 5, 3), np.uint8), np.full((6, 4, 3), 250, np.uint8)


class Echo:
  """A language model that answers with the length of its prompt."""

  tokenizer, max_prompt_tokens = load_tokenizer(), 400

  def __call__(self, prompts):
    return [api.Answer(str(len(prompt)), "stop_token") for prompt in prompts]


def route(images):
  return [Routed("plot" if image.mean() > 128 else "radiology", 0.9) for image in images]


def shapes(images):
  return [f"{image.shape[0]} rows" for image in images]


def fails(images):
  raise ValueError("out of\nmemory")


def system(**experts):
  return System(Echo(), experts, route)


def test_an_image_is_put_into_words_and_the_words_into_the_prompt():
  reply = system(radiology=shapes).ask("Which?", [DARK])
  assert reply.prompt == PROMPTS["image"].format(question="Which?", caption="4 rows")
  assert (reply.text, reply.stop) == (str(len(reply.prompt)), "stop_token")
  [part] = reply.parts
  assert (part.kind, part.probability, part.text, part.shown) == ("radiology", 0.9) + (
    "4 rows",
  ) * 2
  assert not part.problem


def test_without_an_image_nobody_is_consulted():
  reply = System(Echo(), {}, fails).ask("Which?")
  assert reply.prompt == PROMPTS["text"].format(question="Which?") and reply.parts == ()


def test_what_the_kind_is_may_be_given():
  reply = system(radiology=fails, plot=shapes).ask("Which?", [DARK], expert="plot")
  assert (reply.parts[0].kind, reply.parts[0].probability, reply.parts[0].text) == (
    "plot", 1.0, "4 rows",
  )  # fmt: skip


@pytest.mark.parametrize(
  ("bad", "problem"),
  [
    (fails, "the expert for radiology failed: out of memory"),
    (lambda images: ["  "] * len(images), "the expert for radiology said nothing"),
    (lambda images: [], "the expert for radiology failed: 0 texts for 1 images"),
    (expert("git:no/such/folder"), "the expert for radiology failed: no/such/folder/config.json"),
    (expert("call:no.module:name"), "the expert for radiology failed: expert call:no.module:name"),
    (expert("run:no/run"), "the expert for radiology failed: no/run is not a run"),
  ],
)
def test_the_answer_goes_on_without_an_expert_that_fails(bad, problem):
  reply = system(radiology=bad).ask("Which?", [DARK])
  assert reply.prompt == PROMPTS["text"].format(question="Which?") and reply.text
  assert reply.parts[0].problem.startswith(problem) and "\n" not in reply.parts[0].problem


def test_a_file_that_cannot_be_read_is_told_in_its_part():
  reply = system(radiology=shapes).ask("Which?", ["no.png", DARK])
  assert reply.parts[0].kind == "" and reply.parts[0].problem.startswith("no.png cannot be read")
  assert "### Input:\n4 rows\n" in reply.prompt
  assert "an image is uint8" in system().ask("Q", [DARK[..., :1]]).parts[0].problem


def test_a_kind_without_an_expert_has_nothing_to_say():
  [part] = system().ask("Which?", [LIGHT]).parts
  assert (part.kind, part.text, part.problem) == ("plot", "", "")


def test_many_are_asked_at_once_and_each_gets_its_own():
  calls = []

  def counted(images):
    calls.append(len(images))
    return shapes(images)

  asked = [Question("A?", [DARK, LIGHT]), Question("B?"), Question("C?", [DARK])]
  together = System(Echo(), {"radiology": counted, "plot": shapes}, route).ask_all(asked)
  assert calls == [2]
  alone = [system(radiology=shapes, plot=shapes).ask(q.text, q.images) for q in asked]
  assert together == alone
  assert "### Input:\n4 rows\n6 rows\n" in together[0].prompt


def test_one_bad_image_spoils_only_its_own():
  def dark_only(images):
    if any(image.mean() > 128 for image in images):
      raise RuntimeError("too bright")
    return shapes(images)

  said = consulted("x", dark_only, [DARK, LIGHT])
  assert said == [("4 rows", ""), ("", "the expert for x failed: too bright")]


def test_too_long_a_question_is_told_before_anything_is_read():
  with pytest.raises(UserError, match="the question takes"):
    System(Echo(), {"radiology": fails}, fails).ask("why " * 500, [DARK])


def test_specs_of_experts():
  assert expert("call:tests.experts.test_system:shapes")([DARK]) == ["4 rows"]
  with pytest.raises(UserError, match="write TYPE:WHERE"):
    expert("git")
  with pytest.raises(UserError, match="type of expert 'gti'; did you mean 'git'"):
    expert("gti:x")
