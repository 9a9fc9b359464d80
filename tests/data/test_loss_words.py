import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax.data.documents import WHOLE, Episode, Prompt, Sample, Source, episode_document
from medflax.data.encode import encode_document
from medflax.data.loss_words import LossWords
from medflax.data.tokenizer import load_tokenizer
from medflax.utils import UserError

TOKENIZER = load_tokenizer()
ANSWER = "A pleural effusion, left; the effusion is small."


def encode(targets="all", weigh=None, **options):
  query = Sample("s", (), "Is the effusion large?", ANSWER, Source("toy", "1", "train"))
  shot = Sample("t", (), "effusion?", "no effusion", Source("toy", "1", "train"))
  document = episode_document(Episode(query, (shot,)), Prompt(), targets=targets)
  more = {} if weigh is None else {"weigh": weigh}
  return encode_document(document, TOKENIZER, media_rule="prev_image", **more, **options)


def words(tmp_path, *lines, weight=3.0, name="terms.txt"):
  (tmp_path / name).write_text("\n".join(lines) + "\n")
  return (str(tmp_path / name), weight)


def weighing(encoded, weight):
  return TOKENIZER.decode(encoded["tokens"][encoded["loss_mask"] == weight])


def test_terms_of_answers_weigh_more(tmp_path):
  """The longest term counts, whatever its case; words of the question carry no loss at all."""
  general = words(tmp_path, "Effusion\tC0013687", "", "eff")
  special = words(tmp_path, "pleural-effusion", weight=5.0, name="special.txt")
  plain, weighed = encode("none"), encode("none", LossWords([general, special]))
  np.testing.assert_array_equal(weighed["tokens"], plain["tokens"])
  np.testing.assert_array_equal(weighed["loss_mask"] > 0, plain["loss_mask"] == 1)
  assert weighing(weighed, 5.0) == " pleural effusion"
  assert weighing(weighed, 3.0) == " effusion"
  assert weighing(weighed, 1.0).startswith(" A, left; the is small.")


def test_whole_documents_carry_loss():
  encoded = encode(WHOLE)
  assert (encoded["loss_mask"] == 1).all() and len(encoded["tokens"]) == 30
  few = encode(WHOLE, max_tokens=20)  # may lose shots and questions as ever
  assert len(few["tokens"]) == 20 and ANSWER in TOKENIZER.decode(few["tokens"])


@given(st.lists(st.sampled_from(["lung", "left lung", "Lung", "x-ray", "of", "the", "."])))
def test_every_term_is_found_once_and_nothing_else(tmp_path_factory, parts):
  folder = tmp_path_factory.getbasetemp()
  weigh = LossWords([words(folder, "lung", "left lung", "x ray")])
  text = " | ".join(parts)
  weights = weigh(text, range(1, len(text) + 1))  # tokens of one character
  expected = " | ".join(("." if p in ("of", "the", ".") else "#") * len(p) for p in parts)
  for place, (mark, weight) in enumerate(zip(expected, weights, strict=True)):
    assert weight == (3.0 if mark == "#" else 1.0), (text, place)


def test_bad_files_are_named(tmp_path):
  with pytest.raises(UserError, match=r"cannot read .*nowhere"):
    LossWords([(str(tmp_path / "nowhere"), 2.0)])
  with pytest.raises(UserError, match=r"empty\.txt has no terms"):
    LossWords([words(tmp_path, "", "--", name="empty.txt")])
  with pytest.raises(UserError, match="no \\(file, weight above 0\\)"):
    LossWords([words(tmp_path, "a", weight=0.0)])
