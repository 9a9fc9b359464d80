"""The Flamingo that is compared with OpenFlamingo's in torch: `peers/open_flamingo_torch.py`.

LLaMA 256 wide and 8 deep with 32,000 tokens, a gated block every 2 layers, a resampler of 2
layers; images are given as 256 features of width 256 each. Random weights, gates half open.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from medflax.models import VLM
from medflax.models.connectors.perceiver import PerceiverResampler
from medflax.models.fusion.gated_xattn import GatedXattn
from medflax.models.language.decoder import Decoder

VOCAB, END_OF_CHUNK, IMAGE, PAD = 32_000, 31_998, 31_999, 0
FEATURES = 256


class GivenFeatures(nn.Module):
  """Stands for the vision tower."""

  def __call__(self, x: jax.Array, kind: str) -> jax.Array:
    del kind
    return x


def small_flamingo(tower: nn.Module | None = None, vocab_size: int = VOCAB) -> VLM:
  """The model; without a tower, media are features."""
  return VLM(
    tower or GivenFeatures(),
    PerceiverResampler(num_latents=64, depth=2),
    Decoder(
      vocab_size=vocab_size,
      width=256,
      depth=8,
      heads=8,
      kv_heads=8,
      mlp_width=688,
      fusion=GatedXattn(xattn_every=2),
    ),
  )


def prompts(rows: int, length: int, places: tuple[int, ...]) -> dict[str, np.ndarray]:
  """A batch of random tokens with an image at each of `places`, an end of chunk before it."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, END_OF_CHUNK - 8, (rows, length), np.int32)
  tokens[:, places] = IMAGE
  tokens[:, [place - 1 for place in places[1:]]] = END_OF_CHUNK
  index = np.cumsum(tokens == IMAGE, axis=1, dtype=np.int32)
  slots = np.arange(1, len(places) + 1, dtype=np.int32)
  return {
    "tokens": tokens,
    "loss_mask": (tokens != IMAGE).astype(np.float32),
    "media_index": index,
    "media_first": index,
    "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    "segment_ids": np.ones_like(tokens),
    "media/image": rng.normal(size=(rows, len(places), FEATURES, FEATURES)).astype(np.float32),
    "media_ordinal/image": np.tile(slots, (rows, 1)),
  }


def initialise(model: VLM, batch: dict[str, np.ndarray]) -> dict[str, Any]:
  """Random weights with gates at 0.5."""
  init = jax.jit(
    lambda key: model.init(
      key,
      {"image": batch["media/image"][:1]},
      batch["tokens"][:1],
      batch["media_index"][:1],
      media_ordinal={"image": batch["media_ordinal/image"][:1]},
    )
  )
  flat = traverse_util.flatten_dict(nn.unbox(init(jax.random.key(0)))["params"], sep="/")
  opened = {
    path: jnp.full_like(leaf, 0.5) if path.endswith("_gate") else leaf
    for path, leaf in flat.items()
  }
  return traverse_util.unflatten_dict(opened, sep="/")
