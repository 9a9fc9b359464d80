"""BERT, PubMedBERT and RoBERTa of Hugging Face ⇄ `medflax.models.language.encoder`."""

from collections.abc import Mapping as AnyMapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from medflax.pretrained.hf_vision import linear, norm, projection
from medflax.pretrained.mapping import Mapping, Tensor
from medflax.utils import pick

# The names of the masked-token head differ, and so does the row where positions begin.
FAMILIES = {
  "bert": dict(
    position_offset=0,
    base="bert.",
    head="cls.predictions.transform.dense",
    head_norm="cls.predictions.transform.LayerNorm",
    head_bias="cls.predictions.bias",
  ),
  "roberta": dict(
    position_offset=2,
    base="roberta.",
    head="lm_head.dense",
    head_norm="lm_head.layer_norm",
    head_bias="lm_head.bias",
  ),
}
# Buffers, tensors that stand there twice, and heads that a section leaves out.
IGNORE = (
  r".*position_ids|.*decoder\.(weight|bias)|cls\.seq_relationship\..*|(bert\.|roberta\.)?pooler\..*"
  r"|classifier\..*"
)


def config_from_hf(hf: AnyMapping[str, Any]) -> dict[str, Any]:
  """Our language-model section from a `config.json`.

  `architectures` tells which heads there are: a bare model has the pooler, one for masked
  tokens has that head.

  Raises:
    UserError: for another model type.
  """
  family = pick(FAMILIES, hf["model_type"], "encoder model_type")
  names = " ".join(hf.get("architectures") or ())
  masked, both = "MaskedLM" in names, "PreTraining" in names
  return dict(
    type="encoder",
    vocab_size=hf["vocab_size"],
    width=hf["hidden_size"],
    depth=hf["num_hidden_layers"],
    heads=hf["num_attention_heads"],
    mlp_width=hf["intermediate_size"],
    max_positions=hf["max_position_embeddings"],
    position_offset=family["position_offset"],
    token_types=hf["type_vocab_size"],
    activation=hf["hidden_act"],
    norm_eps=hf["layer_norm_eps"],
    lm_head=masked or both,
    pooler=not masked,
  )


def positions(seen: Bool[Array, "b t"], position_offset: int) -> Int[Array, "b t"]:
  """Where tokens stand for the originals: RoBERTa does not count padding, and has it at -1."""
  places = jnp.cumsum(seen, axis=1) * seen - 1
  return places if position_offset else jnp.broadcast_to(jnp.arange(seen.shape[1]), seen.shape)


def layers(path: str, key: str, section: AnyMapping[str, Any]) -> Mapping:
  """BERT's layers, of `section["width"]` and `section["depth"]`; GIT names its own so as well."""
  width, stacked = section["width"], dict(layers=tuple(range(section["depth"])))
  out = {
    **norm(f"{path}attn_norm", f"{key}attention.output.LayerNorm", **stacked),
    **norm(f"{path}mlp_norm", f"{key}output.LayerNorm", **stacked),
    **linear(f"{path}attn/out", f"{key}attention.output.dense", shape=(width, width), **stacked),
    **linear(f"{path}mlp/wi", f"{key}intermediate.dense", **stacked),
    **linear(f"{path}mlp/wo", f"{key}output.dense", **stacked),
  }
  for name in ("query", "key", "value"):
    out |= projection(f"{path}attn/{name}", f"{key}attention.self.{name}", width, **stacked)
  return out


def mapping(section: AnyMapping[str, Any]) -> Mapping:
  """Where each leaf of an `Encoder` with these fields stands in the checkpoint."""
  [family] = (f for f in FAMILIES.values() if f["position_offset"] == section["position_offset"])
  base = family["base"] if section["lm_head"] else ""
  out = {
    "embedding": Tensor(f"{base}embeddings.word_embeddings.weight"),
    "position": Tensor(f"{base}embeddings.position_embeddings.weight"),
    "token_type": Tensor(f"{base}embeddings.token_type_embeddings.weight"),
    **norm("embedding_norm", f"{base}embeddings.LayerNorm"),
    **layers("layers/", f"{base}encoder.layer.{{}}.", section),
  }
  if section["pooler"]:
    out |= linear("pool", f"{base}pooler.dense")
  if section["lm_head"]:
    out |= linear("head", family["head"]) | norm("head_norm", family["head_norm"])
    out["head_bias"] = Tensor(family["head_bias"])
  return out
