import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax.data.documents import (
  END_OF_CHUNK,
  TARGETS,
  Episode,
  Media,
  Prompt,
  Sample,
  Source,
  Special,
  Text,
  episode_document,
)
from medflax.utils import UserError

PICTURE = Media(np.zeros((2, 2, 3), np.uint8))


def sample(answer):
  return Sample("s", (PICTURE,), "which?", answer, Source("toy", "1", "train"))


def episode(*answers):
  *support, query = map(sample, answers)
  return Episode(query, tuple(support))


def learnt(document):
  """The answers that carry loss, by their place; the mark that ends one belongs to it."""
  answers = [s for s in document.segments if isinstance(s, Text) and s.text.startswith(" ")]
  marks = [s for s in document.segments if isinstance(s, Special)]
  assert [s.loss for s in marks] == [s.loss for s in answers[: len(marks)]]
  return [i for i, answer in enumerate(answers) if answer.loss]


@pytest.mark.parametrize(
  ("targets", "places"), [("all", [0, 1, 2, 3, 4]), ("repeated", [2, 3, 4]), ("none", [4])]
)
def test_targets_choose_the_answers_to_learn(targets, places):
  document = episode_document(episode(*"abbac"), Prompt(), targets=targets)
  assert learnt(document) == places


@given(answers=st.lists(st.sampled_from("abc"), min_size=1, max_size=9))
def test_repeated_answers_are_those_the_support_has_shown(answers):
  shown = [i for i, answer in enumerate(answers[:-1]) if answer in answers[:i]]
  document = episode_document(episode(*answers), Prompt(), targets="repeated")
  assert learnt(document) == [*shown, len(answers) - 1]


@pytest.mark.parametrize("targets", TARGETS)
def test_targets_change_nothing_but_the_loss(targets):
  bare = lambda document: [getattr(s, "text", getattr(s, "token", s)) for s in document.segments]
  everything = episode_document(episode(*"abba"), Prompt())
  assert bare(episode_document(episode(*"abba"), Prompt(), targets=targets)) == bare(everything)
  prompt = episode_document(episode(*"abba"), Prompt(), with_answer=False, targets=targets)
  assert not any(s.loss for s in prompt.segments if isinstance(s, Text | Special))
  assert bare(prompt) == bare(everything)[:-2]
  assert bare(everything)[-1] == END_OF_CHUNK


def written(prompt, media=(PICTURE, PICTURE), **meta):
  """The segments of a sample of two pictures: texts, tokens' names and "@" for media."""
  source = Source("toy", "1", "train")
  query = Sample("s1", media, "which {x}?", "left", source, meta=meta)
  segments = episode_document(Episode(query), prompt).segments
  return [getattr(s, "text", getattr(s, "token", "@")) for s in segments]


@pytest.mark.parametrize(
  ("fields", "want"),
  [
    ({}, ["@", "@", "Question: which {x}? Answer:", " left", END_OF_CHUNK]),
    (
      dict(question="q: {question} context:{media}answer ", answer="{answer}", end="</s>"),
      ["q: which {x}? context:", "@", "@", "answer ", "left", "</s>"],
    ),
    (
      dict(media="{<image>}{media}{</image>}", question="{question}{media}", end=""),
      ["which {x}?", *2 * ["<image>", "@", "</image>"], " left"],
    ),
    (
      dict(media="", question="{<s>}{caption}: {question}", end=""),
      ["<s>", "a dot, 3 mm: which {x}?", " left"],
    ),
  ],
)
def test_a_prompt_says_where_media_and_special_tokens_stand(fields, want):
  assert written(Prompt(**fields), caption="a dot, 3 mm") == want


def test_a_prompt_lists_choices_by_letters():
  sample = Sample("s1", (), "which?", "left", Source("d", "1", "test"), choices=("left", "right"))
  [text] = Prompt(question="{question} {choices}:").question_segments(sample)
  assert text == Text("which? A: left B: right:")


def test_a_field_that_the_record_lacks_is_named():
  with pytest.raises(UserError, match=r"prompt\.question has \{caption\}, .* sample 's1' lacks"):
    written(Prompt(question="{caption}"))


def test_a_template_that_is_none_is_refused():
  with pytest.raises(UserError, match=r"^prompt\.answer = '\{answer': "):
    Prompt(answer="{answer")


def test_the_opening_is_the_first_text_of_a_sample():
  assert Prompt(question="{media}{<s>} Q: {question} A:").opening == "Q:"
  assert Prompt(question="{question}{media}").opening == ""
