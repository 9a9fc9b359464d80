import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medflax.data.documents import (
  END_OF_CHUNK,
  VOLUME,
  Document,
  Episode,
  Media,
  Prompt,
  Sample,
  Source,
  Special,
  Text,
  episode_document,
)
from medflax.data.encode import MEDIA_RULES, RowShape, collate, encode_document
from medflax.data.tokenizer import load_tokenizer
from medflax.utils import UserError

TOKENIZER = load_tokenizer()
SOURCE = Source("toy", "1", "train")
PICTURE = Media(np.full((2, 2, 3), 9, np.uint8))
CUBE = Media(np.full((1, 2, 2, 1), 5, np.uint8), VOLUME)


def sample(answer, question="where?", media=(PICTURE,)):
  return Sample("s1", media, question, answer, SOURCE)


def document(*answers, question="where?", instruction="", with_answer=True):
  *support, query = (sample(answer, question) for answer in answers)
  prompt = Prompt(instruction=instruction)
  return episode_document(Episode(query, tuple(support)), prompt, with_answer=with_answer)


def encode(doc, rule="prev_image", **options):
  return encode_document(doc, TOKENIZER, media_rule=rule, **options)


def targets(encoded):
  return TOKENIZER.decode(encoded["tokens"][encoded["loss_mask"] == 1])


# tokens: t t I q a e I q a e I q, the worked example of OpenFlamingo's mask
IS_MEDIA = np.array([c == "I" for c in "ttIqaeIqaeIq"])
EXAMPLE = {
  "prev_image": ("001111222233", "001111222233"),
  "next_image": ("111222233330", "111222233330"),
  "all_prev": ("001111222233", "001111111111"),
}


@pytest.mark.parametrize("rule", MEDIA_RULES)
def test_rules_on_the_worked_example(rule):
  index, first = MEDIA_RULES[rule](IS_MEDIA)
  assert ("".join(map(str, index)), "".join(map(str, first))) == EXAMPLE[rule]


@given(arrays(bool, st.integers(0, 20)), st.sampled_from(sorted(MEDIA_RULES)))
def test_rules_hold_for_any_row(is_media, rule):
  index, first = MEDIA_RULES[rule](is_media)
  assert index.dtype == first.dtype == np.int32
  places = np.flatnonzero(is_media)
  assert (index[places] == np.arange(1, len(places) + 1)).all()  # a media token sees itself
  for t in range(len(is_media)):
    before, after = places[places <= t], places[places > t]
    if rule == "next_image" and not is_media[t]:
      assert index[t] == (len(before) + 1 if len(after) else 0)
    else:
      assert index[t] == len(before)
  assert (first == (np.minimum(index, 1) if rule == "all_prev" else index)).all()


def test_a_shot_reads_as_the_prompt_and_only_answers_carry_loss():
  encoded = encode(document("left", "right"))
  spelt = [t if t < 5 else TOKENIZER.decode([t]) for t in encoded["tokens"].tolist()]

  def shot(answer):
    return [3, "Question:", " where", "?", " Answer:", answer, 4]

  assert spelt == [1, *shot(" left"), *shot(" right")]
  assert encoded["loss_mask"].tolist() == [0] + 2 * [0, 0, 0, 0, 0, 1, 1]
  assert encoded["media_index"].tolist() == [0] + 7 * [1] + 7 * [2]
  assert encoded["media"] == [PICTURE, PICTURE]


def test_a_prompt_for_generation_ends_at_the_answer_and_carries_no_loss():
  full, prompt = encode(document("left")), encode(document("left", with_answer=False))
  assert prompt["tokens"].tolist() == full["tokens"][: len(prompt["tokens"])].tolist()
  assert TOKENIZER.decode(prompt["tokens"][-1:]) == " Answer:"
  assert not prompt["loss_mask"].any()


@given(st.text(max_size=20), st.text(min_size=1, max_size=20))
def test_targets_are_the_answer_whatever_the_texts(question, answer):
  segments = (PICTURE, Text(f"Q: {question} A:"), Text(f" {answer}", loss=True))
  encoded = encode(Document((*segments, Special(END_OF_CHUNK, loss=True)), SOURCE))
  assert targets(encoded).strip() == answer.strip()


def test_users_text_cannot_forge_a_special_token():
  encoded = encode(document(f"yes{END_OF_CHUNK}", question="is <image> <bos> <pad>?"))
  tokens = encoded["tokens"].tolist()
  assert [tokens.count(i) for i in range(5)] == [0, 1, 0, 1, 1]
  assert encoded["media_index"].max() == 1


def test_a_sample_with_two_media_has_two_image_tokens():
  doc = episode_document(Episode(sample("left", media=(PICTURE, CUBE))), Prompt())
  encoded = encode(doc)
  assert encoded["tokens"][:3].tolist() == [1, 3, 3]
  assert [media.kind for media in encoded["media"]] == ["image", "volume"]


def test_the_earliest_shots_go_first_and_are_counted():
  whole = encode(document("left", "right", "small"))
  cut = encode(document("left", "right", "small"), max_tokens=len(whole["tokens"]) - 1)
  assert targets(cut) == " right small"
  assert (cut["dropped_chunks"], cut["cut_tokens"], len(cut["media"])) == (1, 0, 2)
  assert cut["media_index"].tolist() == [0] + 7 * [1] + 7 * [2]
  by_media = encode(document("left", "right", "small"), max_media={"image": 1})
  assert (targets(by_media), by_media["dropped_chunks"]) == (" small", 2)


def test_a_long_question_is_cut_from_the_left():
  doc = document("left", question="large small where", instruction="Look.")
  whole, cut = encode(doc), encode(doc, max_tokens=6)
  assert TOKENIZER.decode(cut["tokens"]) == " where Answer: left"
  assert cut["tokens"][[0, 1, -1]].tolist() == [1, 3, 4]
  assert cut["loss_mask"].tolist() == [0, 0, 0, 0, 1, 1]
  assert (cut["dropped_chunks"], cut["cut_tokens"]) == (0, len(whole["tokens"]) - 6)


@given(st.integers(5, 60), st.integers(0, 5))
def test_a_truncated_document_fits_and_keeps_its_query(max_tokens, num_shots):
  encoded = encode(
    document(*["left"] * num_shots, "right"), max_tokens=max_tokens, max_media={"image": 4}
  )
  assert len(encoded["tokens"]) <= max_tokens
  assert targets(encoded).endswith(" right")
  assert (encoded["tokens"] == 3).sum() == len(encoded["media"]) <= 4
  assert encoded["dropped_chunks"] == num_shots + 1 - len(encoded["media"])


def test_what_cannot_fit_is_named():
  doc = document("left")
  with pytest.raises(UserError, match=r"toy train s1: media and answer take 4 .*\.max_tokens = 3"):
    encode(doc, max_tokens=3)
  doc = episode_document(Episode(sample("left", media=(PICTURE, CUBE, CUBE))), Prompt())
  with pytest.raises(UserError, match=r"toy train s1: .*data\.max_media\.volume = 1"):
    encode(doc, max_media={"image": 1, "volume": 1})


def test_packed_rows_follow_the_batch_contract():
  both = Episode(sample("left"), (sample("right", media=(CUBE,)),))
  a, b = encode(document("left")), encode(episode_document(both, Prompt()), "all_prev")
  shape = RowShape(40, {"image": (3, 2, 2, 3), "volume": (2, 1, 2, 2, 1)})
  batch = collate([[a, b], []], shape, pad_id=0)
  n, m = len(a["tokens"]), len(b["tokens"])
  assert batch["tokens"][0].tolist() == [*a["tokens"], *b["tokens"], *[0] * (40 - n - m)]
  assert batch["segment_ids"][0].tolist() == [1] * n + [2] * m + [0] * (40 - n - m)
  assert batch["positions"][0, : n + m].tolist() == [*range(n), *range(m)]
  assert batch["media_ordinal/image"].tolist() == [[1, 3, 0], [0, 0, 0]]
  assert batch["media_ordinal/volume"].tolist() == [[2, 0], [0, 0]]
  assert batch["media_index"][0, n : n + m].tolist() == [0] + 7 * [2] + 7 * [3]
  assert batch["media_first"][0, n : n + m].tolist() == [0] + 14 * [2]
  assert (batch["media/image"][0, :2] == 9).all()
  assert not batch["media/image"][0, 2].any()
  assert batch["media/volume"].dtype == np.uint8
  assert not any(batch[key][1].any() for key in batch)  # the empty row, pad_id being 0


def test_float_media_make_the_whole_array_float():
  light = Media(np.full((2, 2, 3), 0.5, np.float32))
  rows = [[encode(Document((PICTURE, light), SOURCE))]]
  batch = collate(rows, RowShape(8, {"image": (2, 2, 2, 3)}), pad_id=0)
  assert batch["media/image"].dtype == np.float32
  np.testing.assert_allclose(batch["media/image"][0, :, 0, 0, 0], [9 / 255, 0.5])


def test_rows_that_do_not_fit_are_refused():
  a = encode(document("left"))
  with pytest.raises(ValueError, match="tokens"):
    collate([[a, a]], RowShape(len(a["tokens"]), {"image": (2, 2, 2, 3)}), 0)
  with pytest.raises(ValueError, match="image media"):
    collate([[a, a]], RowShape(40, {"image": (1, 2, 2, 3)}), 0)
  with pytest.raises(UserError, match=r"set data\.image_size"):
    collate([[a]], RowShape(40, {"image": (1, 4, 4, 3)}), 0)


def test_left_padded_prompts_end_together():
  short, long = (encode(document(*answers, with_answer=False)) for answers in ("a", "abc"))
  shape = RowShape(60, {"image": (4, 2, 2, 3)})
  batch = collate([[short], [long]], shape, pad_id=7, left_pad=True)
  for row, encoded in enumerate((short, long)):
    pad = 60 - len(encoded["tokens"])
    assert batch["tokens"][row].tolist() == [7] * pad + encoded["tokens"].tolist()
    assert batch["segment_ids"][row].tolist() == [0] * pad + [1] * (60 - pad)
    assert batch["positions"][row, pad:].tolist() == [*range(60 - pad)]
    assert batch["media_index"][row, pad:].tolist() == encoded["media_index"].tolist()
  assert batch["media_ordinal/image"].tolist() == [[1, 0, 0, 0], [1, 2, 3, 0]]
  assert not batch["loss_mask"].any()


def test_text_only_documents_have_no_media_arrays():
  doc = Document((Text("what is a tumour?"),), SOURCE, bos=False)
  batch = collate([[encode(doc, "next_image")]], RowShape(10, {}), pad_id=0)
  assert not any(key.startswith("media/") for key in batch)
  assert not batch["media_index"].any()


@given(
  images=st.lists(st.integers(0, 2), min_size=1, max_size=3),
  media_tokens=st.integers(1, 3),
  rule=st.sampled_from(sorted(MEDIA_RULES)),
)
def test_inline_media_have_their_own_places(images, media_tokens, rule):
  *support, query = (sample("left", media=(PICTURE,) * n) for n in images)
  prompt = Prompt(question="where {question}{media}?")
  doc = episode_document(Episode(query, tuple(support)), prompt)
  encoded = encode(doc, rule, media_tokens=media_tokens)
  soft = encoded["soft_index"] > 0
  ordinals = np.repeat(np.arange(1, sum(images) + 1), media_tokens)
  assert encoded["media_index"][soft].tolist() == ordinals.tolist()
  assert encoded["media_first"][soft].tolist() == ordinals.tolist()
  places = np.tile(np.arange(1, media_tokens + 1), sum(images))
  assert encoded["soft_index"][soft].tolist() == places.tolist()
  assert not encoded["loss_mask"][soft].any()
  # What is left is the text around them.
  bare = encode(doc, rule, media_mark="")
  assert encoded["tokens"][~soft].tolist() == bare["tokens"].tolist()


def test_a_sample_is_dropped_whole_wherever_its_media_stand():
  prompt = Prompt(question="q: {question} context:{media}answer", end="")
  whole = episode_document(Episode(sample("left"), (sample("right", question="why?"),)), prompt)
  cut = encode(whole, media_tokens=2, max_media={"image": 1})
  alone = encode(episode_document(Episode(sample("left")), prompt), media_tokens=2)
  assert cut["tokens"].tolist() == alone["tokens"].tolist()
  assert cut["soft_index"].tolist() == alone["soft_index"].tolist()
  assert cut["dropped_chunks"] == 1


def test_without_a_mark_every_token_may_see_all_media():
  encoded = encode(document("left", "right"), media_mark="")
  assert TOKENIZER.special_id("<image>") not in encoded["tokens"]
  assert set(encoded["media_index"].tolist()) == {2}
  assert set(encoded["media_first"].tolist()) == {1}
  assert not encode(Document((Text("a"),), SOURCE), media_mark="")["media_first"].any()


def test_batches_of_inline_media_have_their_places():
  encoded = encode(document("left"), media_tokens=2)
  shape = RowShape(20, {"image": (1, 2, 2, 3)}, inline=True)
  batch = collate([[encoded]], shape, pad_id=0, left_pad=True)
  assert (
    batch["soft_index"][0, -len(encoded["tokens"]) :].tolist() == encoded["soft_index"].tolist()
  )
  assert batch["soft_index"].dtype == np.int32
  assert "soft_index" not in collate([[encoded]], RowShape(20, {"image": (1, 2, 2, 3)}), pad_id=0)
