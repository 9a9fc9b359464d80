"""Log-probabilities of answers against sums by hand."""

import numpy as np

from medflax.inference import likelihood
from tests.inference.markov import model_and_params, read, total

PROMPTS = [[2, 3], [4, 5], [3, 3]]
ANSWERS = [[2], [5, 1], [3, 3, 6, 1], [], [4, 2, 1]]


def score(answers, length=4):
  candidates = np.full((len(PROMPTS), len(answers), length), -1, np.int32)
  for i, answer in enumerate(answers):
    candidates[:, i, : len(answer)] = answer
  found = read(0, PROMPTS, length, len(answers))
  return likelihood.score(*model_and_params(0), *found, candidates)


def test_candidates_side_by_side_do_not_see_each_other():
  want = [[total(0, prompt, answer) for answer in ANSWERS] for prompt in PROMPTS]
  np.testing.assert_allclose(score(ANSWERS), want, atol=1e-5)
  np.testing.assert_allclose(score(ANSWERS[::-1]), np.array(want)[:, ::-1], atol=1e-5)


def test_answers_of_one_token_need_no_further_pass():
  want = [[total(0, prompt, [token]) for token in range(7)] for prompt in PROMPTS]
  np.testing.assert_allclose(score([[token] for token in range(7)], 1), want, atol=1e-5)


def test_very_many_candidates_take_several_passes(monkeypatch):
  whole = score(ANSWERS)
  likelihood.score.clear_cache()
  monkeypatch.setattr(likelihood, "MAX_LOGITS", 3 * 3 * 7 * 2)  # of two candidates
  np.testing.assert_allclose(score(ANSWERS), whole, atol=1e-6)
  likelihood.score.clear_cache()
