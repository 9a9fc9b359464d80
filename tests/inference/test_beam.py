"""Beam search against searches written out by hand, and against all continuations."""

import itertools

import numpy as np
import pytest

from medflax.inference.beam import RANKINGS, beam_search
from medflax.inference.stops import stop_at
from tests.inference import markov
from tests.inference.markov import PAD, STOP, VOCAB, logprobs, model_and_params, read


def search(seed, prompts, *, num_beams, max_new_tokens, **options):
  sizes = dict(num_beams=num_beams, max_new_tokens=max_new_tokens)
  found = read(seed, prompts, max_new_tokens, num_beams)
  sizes["prompt_lengths"] = np.array([len(prompt) for prompt in prompts])
  return beam_search(
    *model_and_params(seed), *found, **sizes, stops=stop_at([STOP]), pad_id=PAD, **options
  )


def by_hand_apart(seed, prompt, k, steps, penalty, early):
  """Hugging Face's, with lists."""
  running, finished = [((), 0.0)], []
  for step in range(steps):
    options = [
      ((*tokens, t), total + logprob)
      for tokens, total in running
      for t, logprob in enumerate(logprobs(seed, (*prompt, *tokens)))
    ]
    options = sorted(options, key=lambda x: -x[1])[: 2 * k]
    last = step == steps - 1
    ends = [last or tokens[-1] == STOP for tokens, _ in options]
    for (tokens, total), end in zip(options[:k], ends[:k], strict=True):
      if end:
        finished.append((tokens, total / len(tokens) ** penalty))
    finished = sorted(finished, key=lambda x: -x[1])[:k]
    running = [option for option, end in zip(options, ends, strict=True) if not end][:k]
    if len(finished) == k and running:
      best = running[0][1] / (step + 1) ** penalty
      if early or best <= finished[-1][1]:
        break
  return finished


def by_hand_whole(seed, prompt, k, steps, penalty, early):
  """That of transformers 4.28, with lists: all tokens count but what ends an answer."""
  running, finished = [((), 0.0)], []
  keep = lambda tokens, total, length: sorted(
    [*finished, (tokens, total / (len(prompt) + length) ** penalty)], key=lambda x: -x[1]
  )[:k]
  for step in range(steps):
    options = [
      ((*tokens, t), total + logprob)
      for tokens, total in running
      for t, logprob in enumerate(logprobs(seed, (*prompt, *tokens)))
    ]
    options = sorted(options, key=lambda x: -x[1])[: 2 * k]
    for tokens, total in options[:k]:
      if tokens[-1] == STOP:
        finished = keep(tokens, total, step)
    running = [option for option in options if option[0][-1] != STOP][:k]
    best = options[0][1] / (len(prompt) + step) ** penalty
    if len(finished) == k and (early or best <= finished[-1][1]):
      return finished
  for tokens, total in running:
    finished = keep(tokens, total, steps)
  return finished


def by_hand_among(seed, prompt, k, steps, penalty, _):
  """ClipCap's, with lists: of tokens, their sum, and whether they have stopped."""
  beams = [((), 0.0, False)]
  mean = lambda beam: beam[1] / len(beam[0]) ** penalty
  for _ in range(steps):
    options = [beam for beam in beams if beam[2]]
    for tokens, total, stopped in beams:
      if not stopped:
        for t, logprob in enumerate(logprobs(seed, (*prompt, *tokens))):
          options.append(((*tokens, t), total + logprob, t == STOP))
    beams = sorted(options, key=lambda beam: -mean(beam))[:k]
    if all(stopped for *_, stopped in beams):
      break
  return [(beam[0], mean(beam)) for beam in beams]


BY_HAND = {"apart": by_hand_apart, "whole": by_hand_whole, "among": by_hand_among}
PROMPTS = [[2, 3], [4, 5], [3, 3]]


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("penalty", [-2.0, 0.5, 1.0])
@pytest.mark.parametrize("early", [False, True])
def test_as_by_hand(ranking, penalty, early):
  for seed, k in itertools.product(range(3), (1, 2, 4)):
    found = search(
      seed,
      PROMPTS,
      num_beams=k,
      max_new_tokens=6,
      ranking=ranking,
      length_penalty=penalty,
      early_stopping=early,
    )
    for r, prompt in enumerate(PROMPTS):
      want = BY_HAND[ranking](seed, prompt, k, 6, penalty, early)
      lengths = [len(tokens) for tokens, _ in want]
      assert np.asarray(found.lengths[r]).tolist() == lengths
      padded = [[*tokens, *[PAD] * (6 - len(tokens))] for tokens, _ in want]
      assert np.asarray(found.tokens[r]).tolist() == padded
      np.testing.assert_allclose(found.scores[r], [score for _, score in want], rtol=1e-5)


def test_enough_beams_find_the_best_of_all():
  steps, prompt = 3, [2, 3]
  found = search(0, [prompt], num_beams=VOCAB ** (steps - 1), max_new_tokens=steps)
  totals = {}
  for tokens in itertools.product(range(VOCAB), repeat=steps):
    cut = tokens[: tokens.index(STOP) + 1] if STOP in tokens else tokens
    totals[cut] = markov.total(0, prompt, cut) / len(cut)
  best = max(totals, key=totals.__getitem__)
  assert tuple(np.asarray(found.tokens[0, 0])[: len(best)].tolist()) == best


def test_rows_are_searched_each_by_itself():
  together = search(1, PROMPTS, num_beams=3, max_new_tokens=5)
  for r, prompt in enumerate(PROMPTS):
    alone = search(1, [prompt], num_beams=3, max_new_tokens=5)
    np.testing.assert_array_equal(together.tokens[r], alone.tokens[0])
    np.testing.assert_allclose(together.scores[r], alone.scores[0], rtol=1e-6)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_all_beams_have_ended_or_are_full(ranking):
  found = search(2, PROMPTS, num_beams=4, max_new_tokens=5, ranking=ranking)
  ends = np.asarray(found.tokens == STOP).any(-1)
  assert (ends | (np.asarray(found.lengths) == 5)).all()
  assert (np.diff(found.scores, axis=1) <= 0).all()
