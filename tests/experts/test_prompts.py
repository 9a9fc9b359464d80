"""What experts say is fitted into the prompt; the question stays whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax.data.tokenizer import load_tokenizer
from medflax.experts.prompts import merge
from medflax.experts.templates import PROMPTS
from medflax.utils import UserError

TOKENIZER = load_tokenizer()
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=60)


def size(prompt: str) -> int:
  return 1 + len(TOKENIZER.encode(prompt))  # the token that begins a text


def test_the_templates_are_the_published_ones():
  request = "Write a response that appropriately completes the request.\n\n### Instruction:\nQ\n\n"
  first = "Below is an instruction that describes a task"
  end = "### Response:\n"
  fields = dict(question="Q", caption="C", input="C")
  text, image, training = (PROMPTS[k].format(**fields) for k in ("text", "image", "training"))
  assert text == f"{first}. {request}{end}"
  paired = f"{first}, paired with an input that provides further context"
  assert image == f"{paired} of an uploaded image. {request}### Input:\nC\n\n{end}"
  assert training == f"{paired}. {request}### Input:\nC\n\n{end}"


@given(TEXT, st.lists(TEXT, max_size=3), st.integers(0, 80))
def test_nothing_exceeds_the_budget_and_no_question_is_cut(question, texts, more):
  budget = size(PROMPTS["text"].format(question=question)) + more
  prompt, shown = merge(question, texts, TOKENIZER, budget)
  assert size(prompt) <= budget
  assert all(text.startswith(part) for text, part in zip(texts, shown, strict=True))
  merged = "\n".join(filter(None, (part.strip() for part in shown)))
  template = PROMPTS["image" if merged else "text"]
  assert prompt == template.format(question=question, caption=merged)


@given(TEXT, st.lists(TEXT.filter(str.strip), min_size=1, max_size=3))
def test_what_fits_is_whole(question, texts):
  prompt, shown = merge(question, texts, TOKENIZER, 10_000)
  assert list(shown) == texts
  assert size(prompt) <= 10_000


def test_the_longest_text_loses_its_end_first():
  short, long = "CT.", "Two small nodules on the left. " * 9
  whole = size(PROMPTS["image"].format(question="Q?", caption=f"{short}\n{long.strip()}"))
  prompt, shown = merge("Q?", [short, long], TOKENIZER, whole - 20)
  assert shown[0] == short and 0 < len(shown[1]) < len(long)
  assert size(prompt) >= whole - 24  # no more than must be


def test_braces_are_text():
  prompt, _ = merge("{caption}?", ["{question}"], TOKENIZER, 400)
  assert "{caption}?" in prompt and "### Input:\n{question}\n" in prompt


def test_a_question_that_does_not_fit_is_told():
  with pytest.raises(
    UserError, match=r"takes \d+ tokens with its prompt, more than 20; ask shorter"
  ):
    merge("Why?", [], TOKENIZER, 20)
