"""RadFM and its parts."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from medflax.pretrained.systems import radfm
from tests.golden_cases.base import Case, Check, Result, compare, next_token_loss
from tests.golden_cases.systems import (
  Row,
  System,
  greedy,
  margin,
  row,
  step_logits,
  weighted_loss,
)
from tests.golden_cases.vision import RADFM_PARTS

KIND = "volume"


def whole(case: Case) -> Iterator[Result]:
  """Embeddings, logits, both losses, accuracy and greedy decoding with and without a cache."""
  x = np.asarray(case.arrays["in.vision_x"]).transpose(0, 1, 5, 3, 4, 2)  # from [b, m, c, h, w, d]
  head_dim = case.config["vit_dim_head"]
  checkpoint = radfm.checkpoint(dict(case.weights), head_dim=head_dim)
  checkpoint.sections["tower"]["inputs"]["volume"]["size"] = x.shape[2:5]
  system = System(checkpoint)
  ids, labels = case.arrays["in.lang_x"], case.arrays["in.labels"]
  latents = checkpoint.sections["connector"]["num_latents"]
  text = _row(ids, case.arrays["in.attention_mask"], x.shape[1], latents, case.config["vocab"])
  media = {KIND: jnp.asarray(x)}
  inputs = (media, jnp.asarray(text.tokens), jnp.asarray(text.media_index))
  logits, embeds = system.apply(*inputs, **text.options(KIND), catch="lm._embed")
  seen = case.arrays["in.attention_mask"] > 0
  yield compare("embeddings", embeds, case.arrays["out.inputs_embeds"])
  yield compare("logits", logits, case.arrays["out.logits"], seen)
  yield compare("loss", next_token_loss(logits, labels), case.arrays["out.loss"])
  yield _reweighted(case, logits)
  targets = labels[:, 1:] >= 0
  right = (np.asarray(logits[:, :-1]).argmax(-1) == labels[:, 1:]) | ~targets
  got = right.all(axis=1).mean()
  want = case.arrays["out.accuracy"]
  yield Result("accuracy", float(abs(got - want)))
  features = system.apply(media, method="embed_media")
  yield from _generation(case, system, features[:1], text.take(slice(1)))


def _row(ids: np.ndarray, mask: np.ndarray, images: int, latents: int, vocab: int) -> Row:
  """Ids above the vocabulary and its two figure tokens count the latents of all images."""
  place = ids - vocab - 2
  soft = place >= 0
  index = np.where(soft, place // latents + 1, 0)
  return row(
    np.where(soft, 0, ids), index, np.where(soft, place % latents + 1, 0), mask, media=images
  )


def _reweighted(case: Case, logits) -> Result:
  """Weights are shifted with the labels."""
  labels, weights = case.arrays["in.labels"][:, 1:], case.arrays["in.loss_reweight"][:, 1:]
  got = weighted_loss(logits[:, :-1], labels, weights)
  return compare("reweighted loss", got, case.arrays["out.loss_reweighted"])


def _generation(case: Case, system: System, features, prompt: Row) -> Iterator[Result]:
  """Of the first row, padding and all: RadFM generates without a mask."""
  prompt = row(
    prompt.tokens, prompt.media_index, prompt.soft_index, media=prompt.media_ordinal.shape[1]
  )
  want = case.arrays["out.greedy_ids_row0"][:, 1:]  # without the placeholder in front
  yield greedy(system, features, prompt, want)
  scores = step_logits(system, features, prompt, want)
  yield compare("logits of every step", scores, case.arrays["out.greedy_scores_row0"])
  yield margin(scores, case.arrays["out.greedy_margin"])
  longer = lambda x: np.pad(x, ((0, 0), (0, want.shape[1] - 1)))
  tokens = np.concatenate([prompt.tokens, want[:, :-1]], axis=1)
  text = row(
    tokens,
    longer(prompt.media_index),
    longer(prompt.soft_index),
    media=prompt.media_ordinal.shape[1],
  )
  inputs = (features, jnp.asarray(text.tokens), jnp.asarray(text.media_index))
  logits = system.apply(*inputs, **text.options("media"), method="_predict")
  yield compare(
    "the same without a cache",
    logits[:, -want.shape[1] :],
    case.arrays["out.greedy_scores_nocache_row0"],
  )


def check(case: Case) -> Iterator[Result]:
  """A part, known by a tensor of its own, or the whole."""
  parts = [part for key, part in RADFM_PARTS.items() if key in case.weights]
  return parts[0](case) if parts else whole(case)


CHECKS: dict[str, Check] = {"radfm": check}
