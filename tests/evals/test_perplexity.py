"""Perplexity of a model whose losses are known."""

import json
from typing import ClassVar

import flax.linen as nn
import numpy as np
import pytest

from medflax.data.documents import Prompt, episode_document
from medflax.data.encode import encode_document
from medflax.evals import EVALUATORS

CONFIG = {"type": "perplexity", "every": 0, "task": "side", "num_shots": 1, "batch_size": 5}


class Bigram(nn.Module):
  """Logits of the next token by the token before, from a table."""

  shift: ClassVar[int] = 1
  hide = staticmethod(lambda batch: batch)

  @nn.compact
  def __call__(self, media, tokens, media_index, **rest):
    return self.param("table", nn.initializers.zeros, (2048, 2048))[tokens]


def test_a_model_without_knowledge_has_the_vocabularys_perplexity(make_context, lungs):
  context = make_context(lungs, Bigram())
  metrics = EVALUATORS["perplexity"]("ppl", CONFIG, context).run(
    {"table": np.zeros((2048, 2048), np.float32)}, 3
  )
  assert metrics["ppl/perplexity"].value == pytest.approx(2048, rel=1e-5)
  assert metrics["ppl/nll"].value == pytest.approx(np.log(2048), rel=1e-6)
  assert metrics["ppl/nll"].n == 12
  assert metrics["ppl/nll"].stderr == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("targets", ["all", "none"])
def test_only_targets_count_and_each_document_by_its_tokens(
  make_context, lungs, tokenizer, targets
):
  """A batch size that does not divide the documents, against a loop over their tokens."""
  table = np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32)
  context = make_context(lungs, Bigram())
  config = CONFIG | {"targets": targets}
  metrics = EVALUATORS["perplexity"]("ppl", config, context).run({"table": table}, 3)

  log_p = table - np.log(np.exp(table.astype(np.float64)).sum(1, keepdims=True))
  losses = []
  for episode in lungs.episodes("side", "val", 1):
    document = encode_document(
      episode_document(episode, Prompt(), targets=targets), tokenizer, media_rule="prev_image"
    )
    tokens, mask = document["tokens"], document["loss_mask"] > 0
    losses.append(
      [-log_p[a, b] for a, b, m in zip(tokens, tokens[1:], mask[1:], strict=False) if m]
    )
  everything = np.concatenate(losses)
  assert metrics["ppl/nll"].value == pytest.approx(everything.mean(), rel=1e-5)
  low, high = metrics["ppl/perplexity"].ci95
  assert low < metrics["ppl/perplexity"].value < high

  folder = context.workdir / "evals" / "ppl" / "3"
  results = json.loads((folder / "results.json").read_text())
  assert results["num_tokens"] == len(everything)
  samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
  assert [s["num_tokens"] for s in samples] == [len(part) for part in losses]
  assert samples[4]["nll"] == pytest.approx(sum(losses[4]), rel=1e-5)
