"""T5 and Pix2Struct."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from medflax.models.language.encoder_decoder import EncoderDecoder
from medflax.pretrained import hf_encoder_decoders as hf
from tests.golden_cases.base import (
  Case,
  Check,
  Result,
  abstract_leaves,
  compare,
  import_weights,
  same_tokens,
)


def encoder_decoder(case: Case) -> Iterator[Result]:
  section = hf.config_from_hf(case.hf)
  model = EncoderDecoder(**{name: value for name, value in section.items() if name != "type"})
  [name] = {"input_ids", "flattened_patches"} & set(case.inputs())
  inputs = jnp.asarray(case.arrays[f"in.{name}"])
  seen = jnp.asarray(case.arrays["in.attention_mask"]) > 0
  tokens = jnp.asarray(case.arrays["in.decoder_input_ids"], jnp.int32)
  abstract = abstract_leaves(model, inputs, seen, tokens)
  params = import_weights(hf.mapping(section), abstract, case.weights, hf.IGNORE)
  memory = jax.jit(lambda p, x, s: model.apply(p, x, s, method="encode"))(params, inputs, seen)
  yield compare("encoder", memory, case.arrays["out.encoder_last_hidden_state"])
  logits = jax.jit(model.apply)(params, inputs, seen, tokens)
  yield compare("logits", logits, case.arrays["out.logits"])

  greedy = case.arrays["out.greedy_ids"]
  total = greedy.shape[1]

  @jax.jit
  def step(token, cache, index):
    options = dict(cache=cache, index=index, method="decode")
    return model.apply(params, token, memory, seen, **options)

  first = jnp.asarray(greedy[:, :1], jnp.int32)
  y, cache = model.apply(params, first, memory, seen, cache_size=total, method="decode")
  ids, scores = [first], [y]
  for i in range(1, total):
    ids.append(scores[-1].argmax(-1).astype(jnp.int32))
    if i < total - 1:
      y, cache = step(ids[-1], cache, jnp.asarray(i))
      scores.append(y)
  yield compare("scores of decoding", np.concatenate(scores, 1), case.arrays["out.greedy_scores"])
  yield same_tokens("greedy tokens", np.concatenate(ids, 1), greedy)


CHECKS: dict[str, Check] = {"t5": encoder_decoder, "pix2struct": encoder_decoder}
