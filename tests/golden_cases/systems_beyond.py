"""Gemma 3 and LLaVA as transformers computes them."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from medflax.pretrained.systems import gemma3_vlm, llava
from tests.golden_cases.base import Case, Check, Result, compare
from tests.golden_cases.systems import Row, System, greedy, row
from tests.golden_cases.vision import channels_last

READERS = {"gemma3": gemma3_vlm.checkpoint, "llava": llava.checkpoint}


def check(case: Case) -> Iterator[Result]:
  """Features of the images, logits of what is not padding, greedy tokens."""
  system = System(READERS[case.hf["model_type"]](case.hf, dict(case.weights)))
  x = channels_last(case.arrays["in.pixel_values"])
  features = system.apply({"image": x[:, None]}, method="embed_media")
  yield compare("image features", features[:, 0], case.arrays["out.image_features"])
  ids, mask = case.arrays["in.input_ids"], case.arrays["in.attention_mask"]
  text, slots = _row(ids, mask, ids == case.hf["image_token_index"], features.shape[2])
  features = features[slots, 0]
  inputs = (features, jnp.asarray(text.tokens), jnp.asarray(text.media_index))
  logits = system.apply(*inputs, **text.options("media"), method="_predict")
  yield compare("logits", logits, case.arrays["out.logits"], mask > 0)
  whole = {"image": x[slots]}
  inputs = (whole, jnp.asarray(text.tokens), jnp.asarray(text.media_index))
  logits = system.apply(*inputs, **text.options("image"))
  yield compare("logits from pixels", logits, case.arrays["out.logits"], mask > 0)
  yield greedy(system, features, text, case.arrays["out.greedy_ids"][:, ids.shape[1] :])


def _row(
  ids: np.ndarray, mask: np.ndarray, is_image: np.ndarray, latents: int
) -> tuple[Row, np.ndarray]:
  """The rows, and which image stands in each of their slots: they come in the rows' order."""
  place = np.cumsum(is_image, axis=1) - 1
  counts = is_image.sum(axis=1) // latents
  first = np.cumsum(counts) - counts
  slots = np.minimum(first[:, None] + np.arange(max(counts.max(), 1)), counts.sum() - 1)
  soft = np.where(is_image, place % latents + 1, 0)
  index = np.where(is_image, place // latents + 1, 0)
  return row(ids, index, soft, mask, media=slots.shape[1]), slots


CHECKS: dict[str, Check] = {"beyond": check}
