"""Prefix VQA: the mapper's tokens in the middle of a question, before GPT-2's answer."""

from collections.abc import Iterator

import flax
import jax
import jax.numpy as jnp
import numpy as np

from medflax.inference.beam import beam_search
from medflax.inference.decode import read_prompts
from medflax.inference.stops import stop_at
from medflax.models import build_model
from medflax.models.fusion.inline import soft_tokens
from medflax.pretrained import hf_decoders
from medflax.pretrained.systems import prefix_vqa
from tests.golden_cases.base import (
  Case,
  Check,
  Result,
  abstract_leaves,
  compare,
  import_weights,
  same_tokens,
)
from tests.golden_cases.systems import COMMON, System, greedy, in_bfloat16, row


class _Prefix(System):
  """A `System` without a tower: the cases start from the image's embedding."""

  def __init__(self, case: Case, x: np.ndarray):
    sizes, told = case.config["gpt2"], dict(model_type="gpt2", layer_norm_epsilon=1e-5)
    lm = hf_decoders.config_from_hf(told | sizes | dict(vocab_size=sizes["vocab"]))
    heads = case.config["heads"]
    sections = prefix_vqa.config_from_tensors(case.weights, lm, heads=heads)
    table = prefix_vqa.table(dict(sections=sections, model_type="gpt2"))
    self.sections = sections
    self.model = build_model(flax.core.freeze(COMMON | sections))

    def everything(model, x, tokens):
      return model.connector(x), model(
        {}, tokens, tokens, media_ordinal={}, positions=tokens, segment_ids=tokens
      )

    token = jnp.ones((1, 1), jnp.int32)
    leaves = abstract_leaves(self.model, x, token, method=everything)
    ignore = prefix_vqa.ignored("gpt2", lm)
    self.params = import_weights(table, leaves, case.weights, ignore)


def check(case: Case) -> Iterator[Result]:
  """The mapper, logits, the samples' mean loss, embeddings, beam search and greedy decoding."""
  x = jnp.asarray(case.arrays["in.prefix"])[:, None, None, None]  # [b, m, frames, v, d]
  system = _Prefix(case, x)
  features = system.apply(x, method=lambda m, x: m.connector(x))
  yield compare("prefix", features[:, 0], case.arrays["out.prefix_projections"])
  ids, seen, start = (case.arrays[f"in.{name}"] for name in ("tokens", "mask", "q_len"))
  place = np.arange(ids.shape[1]) - start[:, None] + 1
  latents = features.shape[2]
  soft = np.where((place > 0) & (place <= latents), place, 0)
  text = row(ids, np.ones_like(ids), soft)
  inputs, want = (features, jnp.asarray(seen), text), case.arrays["out.logits"]
  logits = system.apply(*inputs, method=_logits)
  yield compare("logits", logits, want)
  yield in_bfloat16(system, *inputs, method=_logits, want=want)
  yield compare("loss", _loss(logits, ids, start + latents), case.arrays["out.loss"])
  stop = start[0] + latents
  prompt = row(ids[:1, :stop], np.ones((1, stop)), soft[:1, :stop])
  yield from _generation(case, system, features[:1], prompt)


def _logits(model, features, seen, text):
  """Places are counted from the row's start, padding or not; keys are masked alone."""
  t = text.tokens.shape[1]
  positions = jnp.broadcast_to(jnp.arange(t), text.tokens.shape)
  mask = jnp.tril(jnp.ones((t, t), bool)) & (seen[:, None] > 0)
  ordinal = {"media": text.media_ordinal}
  soft = soft_tokens(features, text.media_index, text.soft_index, ordinal)
  return model.lm(text.tokens, positions, mask, features, None, soft=soft)[0]


def _loss(logits: jax.Array, ids: np.ndarray, start: np.ndarray) -> jax.Array:
  """What follows the prefix, without zeros; each sample's mean, then theirs."""
  logprobs = jax.nn.log_softmax(logits[:, :-1])
  picked = jnp.take_along_axis(logprobs, jnp.asarray(ids[:, 1:, None]), axis=-1)[..., 0]
  counts = (np.arange(ids.shape[1] - 1) >= start[:, None]) & (ids[:, 1:] != 0)
  return -((picked * counts).sum(1) / counts.sum(1)).mean()


def _generation(case: Case, system: System, features, prompt) -> Iterator[Result]:
  options = prompt.options("media")
  inputs = (features, jnp.asarray(prompt.tokens), jnp.asarray(prompt.media_index))
  _, embeds = system.apply(*inputs, method="_predict", **options, catch="lm._embed")
  places = system.params["params"]["lm"]["positions"][: embeds.shape[1]]  # theirs are added later
  yield compare("embeddings to generate from", embeds - places, case.arrays["out.gen_embeds"])
  yield greedy(system, features, prompt, case.arrays["out.greedy_ids"][None])
  want = case.arrays["out.beam5_ids"]
  lengths = (want >= 0).sum(axis=1)
  # An answer that is shorter than others ended with the stop token.
  stops = [want[i, n - 1] for i, n in enumerate(lengths) if n < lengths.max()]
  batch = options | dict(
    features=features,
    tokens=inputs[1],
    media_index=inputs[2],
    media_ordinal=jnp.asarray(prompt.media_ordinal),
  )
  size = dict(max_new_tokens=int(lengths.max()), num_beams=len(want))
  model, params = system.model, system.params["params"]
  found = beam_search(
    model,
    params,
    *read_prompts(model, params, batch, int(lengths.max()), branches=len(want)),
    **size,
    stops=stop_at(stops[:1] or [-1]),
    pad_id=0,
    prompt_lengths=prompt.segment_ids.sum(axis=1),
    ranking="among",
  )
  cut = np.arange(lengths.max()) < np.asarray(found.lengths[0])[:, None]
  tokens = np.where(cut, found.tokens[0], -1)
  yield same_tokens(f"{len(want)} beams", tokens, want[:, : lengths.max()])


CHECKS: dict[str, Check] = {"prefix_vqa": check}
