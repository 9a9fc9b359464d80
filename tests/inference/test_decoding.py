"""Greedy and random continuations, what they may be and where they end."""

import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from medflax.inference import decoding
from medflax.inference.decoding import DECODERS, Beam, Greedy, Sample, make_decoder
from medflax.inference.guide import NEVER
from medflax.inference.stops import STOP_REASONS, make_stops, stop_at
from medflax.utils import UserError
from tests.inference.markov import PAD, STOP, VOCAB, logprobs, model_and_params, read, total

PROMPTS = [[2, 3], [4, 5], [3, 3], [6, 2]]


class Letters:
  """A tokenizer whose tokens are letters, but the last."""

  def pieces(self):
    return [b"", b"", b"c", b"d", b"e", b"f", b"gc"]


def run(decoder, prompts=PROMPTS, seed=0, stops=None, **options):
  found = read(seed, prompts, decoder.max_new_tokens, decoder.branches)
  stops = stop_at([STOP]) if stops is None else stops
  options = dict(stops=stops, pad_id=PAD, prompt_lengths=np.full(len(prompts), 2)) | options
  made = decoder.generate(*model_and_params(seed), *found, **options)
  return np.asarray(made.tokens).tolist(), [STOP_REASONS[int(x)] for x in made.reason]


def greedy_by_hand(prompt, steps, seed=0):
  made = []
  for _ in range(steps):
    made.append(int(logprobs(seed, (*prompt, *made)).argmax()))
    if made[-1] == STOP:
      break
  return made


def keys(*numbers):
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.asarray(numbers))


@pytest.mark.parametrize("seed", range(3))
def test_greedy_takes_the_best_token_until_it_ends(seed):
  tokens, reasons = run(Greedy(5), seed=seed)
  for prompt, row, reason in zip(PROMPTS, tokens, reasons, strict=True):
    made = greedy_by_hand(prompt, 5, seed)
    assert row == made + [PAD] * (5 - len(made))
    assert reason == ("stop_token" if STOP in made else "length")


def test_rows_without_a_prompt_are_not_answered():
  tokens, reasons = run(Greedy(5), prompt_lengths=np.array([2, 0, 2, 0]))
  assert tokens[1] == tokens[3] == [PAD] * 5
  assert tokens[0] == run(Greedy(5))[0][0] and reasons[1] == "length"


def test_a_string_ends_an_answer_as_soon_as_it_is_there():
  texts = Letters().pieces()
  free = [greedy_by_hand(prompt, 6) for prompt in PROMPTS]
  spelled = b"".join(texts[token] for token in free[0])
  string = spelled[1:3].decode()
  tokens, reasons = run(Greedy(6), stops=make_stops(Letters(), [STOP], [string]))
  assert reasons[0] == "stop_string"
  for row, whole, reason in zip(tokens, free, reasons, strict=True):
    ends = [i for i in range(7) if string in b"".join(texts[t] for t in whole[:i]).decode()]
    cut = whole[: ends[0]] if ends else whole
    assert row == cut + [PAD] * (6 - len(cut))
    assert (reason == "stop_string") == bool(ends)


def test_a_sample_is_its_row_s_alone():
  sample = Sample(6, temperature=1.5, top_k=5, top_p=0.9)
  together, _ = run(sample, key=keys(0, 1, 2, 3))
  alone, _ = run(sample, PROMPTS[2:3], key=keys(2))
  assert together[2] == alone[0]
  others, _ = run(sample, key=keys(4, 5, 6, 7))
  assert others != together
  assert run(sample, key=keys(0, 1, 2, 3))[0] == together


def test_samples_are_as_frequent_as_they_are_probable():
  n = 4000
  tokens, _ = run(Sample(1, temperature=2.0), [[2, 3]] * n, key=keys(*range(n)))
  probability = np.exp(logprobs(0, (2, 3)) / 2)
  probability /= probability.sum()
  counts = np.bincount(np.ravel(tokens), minlength=VOCAB)
  chi_square = ((counts - n * probability) ** 2 / (n * probability)).sum()
  assert chi_square < 22.5  # 6 degrees of freedom, one in a thousand


@hypothesis.given(st.integers(0, 999), st.integers(0, 8), st.floats(0.05, 1.0), st.floats(0.2, 3.0))
def test_the_most_probable_tokens_are_kept(seed, top_k, top_p, temperature):
  logits = np.random.default_rng(seed).normal(0, 2, VOCAB)
  kept = Sample(1, temperature, top_k, top_p).kept(jnp.asarray(logits, jnp.float32)[None])[0]
  order = np.argsort(-logits)[: top_k or None]
  probability = np.exp(logits[order] / temperature)
  probability /= probability.sum()
  before = np.cumsum(probability) - probability
  hypothesis.assume(np.abs(before - top_p).min() > 1e-5)
  want = set(order[before < top_p]) if top_p < 1 else set(order)
  assert set(np.flatnonzero(np.asarray(kept) > NEVER / 10)) == want


ANSWERS = [[4, 2], [4, 2, 5], [3], [6, 6]]


def padded(answers, rows=4):
  row = np.full((len(answers), 3), -1, np.int32)
  for place, tokens in zip(row, answers, strict=True):
    place[: len(tokens)] = tokens
  return np.repeat(row[None], rows, axis=0)


@pytest.mark.parametrize("decoder", [Greedy(4), Beam(4, num_beams=4, length_penalty=0.0)])
@pytest.mark.parametrize("seed", range(3))
def test_answers_of_a_closed_set(decoder, seed):
  tokens, reasons = run(decoder, seed=seed, allowed=padded(ANSWERS))
  complete = [[*answer, STOP] for answer in ANSWERS]
  assert reasons == ["stop_token"] * 4
  for prompt, row in zip(PROMPTS, tokens, strict=True):
    answer = row[: row.index(STOP) + 1]
    assert answer in complete
    if isinstance(decoder, Beam):  # as many beams as answers find the most probable
      assert answer == max(complete, key=lambda tokens: total(seed, prompt, tokens))


def test_each_row_has_answers_of_its_own():
  allowed = np.stack([padded([answer], 1)[0] for answer in ANSWERS])
  tokens, _ = run(Greedy(4), allowed=allowed)
  assert [row[: row.index(STOP)] for row in tokens] == ANSWERS


def test_a_beam_ends_at_a_string():
  stops = make_stops(Letters(), [STOP], ["d", "gc"])
  tokens, reasons = run(Beam(6, num_beams=3), stops=stops)
  assert "stop_string" in reasons
  for row, reason in zip(tokens, reasons, strict=True):
    places = [i for i, token in enumerate(row) if token in (3, 6)]
    assert bool(places) == (reason == "stop_string")
    assert row[places[0] + 1 :] == [PAD] * (5 - places[0]) if places else True


@pytest.mark.parametrize("name", DECODERS)
def test_equal_shapes_share_a_program(name):
  decoder = make_decoder({"type": name, "max_new_tokens": 3})
  program = decoding.beam_search if name == "beam" else decoding._one_by_one
  run(decoder, key=keys(0, 1, 2, 3))
  before = program._cache_size()
  again = make_decoder({"type": name, "max_new_tokens": 3})
  run(again, PROMPTS[::-1], seed=1, key=keys(4, 5, 6, 7))
  assert program._cache_size() == before


@pytest.mark.parametrize(
  ("fields", "complaint"),
  [
    ({"type": "beem"}, "decoding.type.*'beam'"),
    ({"num_beams": 4}, "unknown field decoding.num_beams"),
    ({"type": "sample", "temperatur": 1.0}, "'temperature'"),
    ({"type": "sample", "temperature": 0.0}, "decoding.temperature=0.0"),
    ({"type": "sample", "top_p": 1.5}, "decoding.top_p=1.5"),
    ({"max_new_tokens": 0}, "decoding.max_new_tokens=0"),
    ({"max_new_tokens": "8"}, "must be of type int"),
    ({"max_new_tokens": True}, "must be of type int"),
    ({"type": "beam", "early_stopping": 1}, "must be of type bool"),
    ({"type": "beam", "ranking": "x"}, "decoding.ranking"),
  ],
)
def test_mistakes_are_named(fields, complaint):
  with pytest.raises(UserError, match=complaint):
    make_decoder(fields)


def test_fields_and_defaults():
  assert make_decoder({}) == Greedy(8)
  beam = make_decoder({"type": "beam", "num_beams": 3, "length_penalty": 2})
  assert beam == Beam(8, 3, 2.0) and beam.branches == 3
  assert make_decoder({"type": "sample", "top_k": 4}).branches == 1
  assert len(set(itertools.chain(DECODERS))) == 3
