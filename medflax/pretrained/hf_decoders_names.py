"""What Hugging Face's causal language models call the parts of our `Decoder`."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from medflax.pretrained.mapping import Mapping as Table
from medflax.pretrained.mapping import Tensor
from medflax.utils import pick


@dataclasses.dataclass(frozen=True)
class Names:
  """One family's names, without the last part (`.weight`, `.bias`).

  Attributes:
    outer: our modules outside the layers → theirs.
    layer: their prefix of a layer, "{}" standing for its number.
    inner: our modules within a layer → theirs, after that prefix.
    fused: queries, keys and values are one tensor: "blocks" one after the other, "heads" head
      by head; "" if they are not.
    transposed: linear maps are stored [out, in], as torch's `Linear` does.
    ignore: regex of names in published files that are no weights.
  """

  outer: Mapping[str, str]
  layer: str
  inner: Mapping[str, str]
  fused: str = ""
  transposed: bool = True
  ignore: str = r".*\.rotary_emb\.inv_freq"


_QKVO = {
  "attn/query": "self_attn.q_proj",
  "attn/key": "self_attn.k_proj",
  "attn/value": "self_attn.v_proj",
}
_LLAMA = Names(
  outer={"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"},
  layer="model.layers.{}.",
  inner=_QKVO
  | {
    "attn/out": "self_attn.o_proj",
    "attn/query_norm": "self_attn.q_norm",
    "attn/key_norm": "self_attn.k_norm",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
  },
)
_GEMMA2 = dataclasses.replace(
  _LLAMA,
  inner={
    **_LLAMA.inner,
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
  },
)
_GPT2 = Names(
  outer={
    "embedding": "transformer.wte",
    "positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
  },
  layer="transformer.h.{}.",
  inner={
    "attn/query": "attn.c_attn",
    "attn/key": "attn.c_attn",
    "attn/value": "attn.c_attn",
    "attn/out": "attn.c_proj",
    "mlp/wi": "mlp.c_fc",
    "mlp/wo": "mlp.c_proj",
    "attn_norm": "ln_1",
    "mlp_norm": "ln_2",
  },
  fused="blocks",
  transposed=False,
  ignore=r".*\.attn\.(masked_)?bias",
)
_GPTJ = Names(
  outer={"embedding": "transformer.wte", "norm": "transformer.ln_f", "head": "lm_head"},
  layer="transformer.h.{}.",
  inner={
    "attn/query": "attn.q_proj",
    "attn/key": "attn.k_proj",
    "attn/value": "attn.v_proj",
    "attn/out": "attn.out_proj",
    "mlp/wi": "mlp.fc_in",
    "mlp/wo": "mlp.fc_out",
    "norm": "ln_1",
  },
  ignore=r".*\.attn\.(masked_)?bias",
)
_GPT_NEOX = Names(
  outer={
    "embedding": "gpt_neox.embed_in",
    "norm": "gpt_neox.final_layer_norm",
    "head": "embed_out",
  },
  layer="gpt_neox.layers.{}.",
  inner={
    "attn/query": "attention.query_key_value",
    "attn/key": "attention.query_key_value",
    "attn/value": "attention.query_key_value",
    "attn/out": "attention.dense",
    "mlp/wi": "mlp.dense_h_to_4h",
    "mlp/wo": "mlp.dense_4h_to_h",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
  },
  fused="heads",
  ignore=r".*\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",
)
_PHI = Names(
  outer={"embedding": "model.embed_tokens", "norm": "model.final_layernorm", "head": "lm_head"},
  layer="model.layers.{}.",
  inner=_QKVO
  | {
    "attn/out": "self_attn.dense",
    "mlp/wi": "mlp.fc1",
    "mlp/wo": "mlp.fc2",
    "norm": "input_layernorm",
  },
)
_OPT = Names(
  outer={
    "embedding": "model.decoder.embed_tokens",
    "positions": "model.decoder.embed_positions",
    "embed_in": "model.decoder.project_in",
    "embed_out": "model.decoder.project_out",
    "norm": "model.decoder.final_layer_norm",
    "head": "lm_head",
  },
  layer="model.decoder.layers.{}.",
  inner=_QKVO
  | {
    "attn/out": "self_attn.out_proj",
    "mlp/wi": "fc1",
    "mlp/wo": "fc2",
    "attn_norm": "self_attn_layer_norm",
    "mlp_norm": "final_layer_norm",
  },
)
_BIOGPT = dataclasses.replace(
  _OPT,
  outer={
    "embedding": "biogpt.embed_tokens",
    "positions": "biogpt.embed_positions",
    "norm": "biogpt.layer_norm",
    "head": "output_projection",
  },
  layer="biogpt.layers.{}.",
)
_MPT = Names(
  outer={"embedding": "transformer.wte", "norm": "transformer.norm_f", "head": "lm_head"},
  layer="transformer.blocks.{}.",
  inner={
    "attn/query": "attn.Wqkv",
    "attn/key": "attn.Wqkv",
    "attn/value": "attn.Wqkv",
    "attn/query_norm": "attn.q_ln",
    "attn/key_norm": "attn.k_ln",
    "attn/out": "attn.out_proj",
    "mlp/wi": "ffn.up_proj",
    "mlp/wo": "ffn.down_proj",
    "attn_norm": "norm_1",
    "mlp_norm": "norm_2",
  },
  fused="blocks",
)
_MOSAIC_GPT = dataclasses.replace(
  _MPT,
  outer={**_MPT.outer, "norm": "transformer.ln_f"},
  inner={
    **_MPT.inner,
    "mlp/wi": "mlp.mlp_up",
    "mlp/wo": "mlp.mlp_down",
    "attn_norm": "ln_1",
    "mlp_norm": "ln_2",
  },
)

NAMES: dict[str, Names] = {
  "biogpt": _BIOGPT,
  "gemma": _LLAMA,
  "gemma2": _GEMMA2,
  "gemma3_text": _GEMMA2,
  "gpt2": _GPT2,
  "gpt_neox": _GPT_NEOX,
  "gptj": _GPTJ,
  "llama": _LLAMA,
  "mistral": _LLAMA,
  "mosaic_gpt": _MOSAIC_GPT,
  "mpt": _MPT,
  "opt": _OPT,
  "phi": _PHI,
  "qwen2": _LLAMA,
  "qwen3": _LLAMA,
}


def ignored(model_type: str, lm: Mapping[str, Any]) -> str:
  """Regex of the foreign names that are no weights, or stand there a second time."""
  names = pick(NAMES, model_type, "model_type")
  twice = re.escape(f"{names.outer['head']}.weight")
  return f"{names.ignore}|{twice}" if lm.get("tie_embeddings") else names.ignore


def mapping(model_type: str, lm: Mapping[str, Any], xattn_every: int = 1) -> Table:
  """Where each leaf of a `Decoder` stands in a checkpoint of that family.

  Args:
    model_type: of the checkpoint's config.json, a name in `NAMES`.
    lm: the `model.lm` section.
    xattn_every: of the fusion, by which the layers are grouped; 1 without gated blocks, which
      are not language model's and have no place here.

  Returns:
    Our paths without `lm/`.
  """
  names = pick(NAMES, model_type, "model_type")
  groups, tail = divmod(lm["depth"], xattn_every)
  stacks = {
    f"groups/layer_{i}/": tuple(range(i, groups * xattn_every, xattn_every))
    for i in range(xattn_every)
  }
  stacks["tail/layer_0/"] = tuple(range(lm["depth"] - tail, lm["depth"]))
  table = {
    path: _tensor(names, lm, path, f"{names.outer[module]}.{theirs}", ())
    for module in names.outer
    for path, theirs in _leaves(lm, module, absent=_ABSENT_OUTER)
  }
  for prefix, numbers in stacks.items():
    if numbers:
      for module in names.inner:
        for path, theirs in _leaves(lm, module, absent=_ABSENT_INNER):
          key = f"{names.layer}{names.inner[module]}.{theirs}"
          table[prefix + path] = _tensor(names, lm, path, key, numbers)
  return table


# Modules that a family names and not every model of it has.
_ABSENT_OUTER = {
  "head": lambda lm: lm.get("tie_embeddings", False),
  "norm": lambda lm: not lm.get("final_norm", True),
  "embed_in": lambda lm: not lm.get("embed_width", 0),
  "embed_out": lambda lm: not lm.get("embed_width", 0),
}
_ABSENT_INNER = {
  "attn/query_norm": lambda lm: not lm.get("qk_norm", ""),
  "attn/key_norm": lambda lm: not lm.get("qk_norm", ""),
}
# The setting that gives a linear map its bias.
_BIASES = {
  "attn/query": "qkv_bias",
  "attn/key": "qkv_bias",
  "attn/value": "qkv_bias",
  "attn/out": "out_bias",
  "mlp/wi": "mlp_bias",
  "mlp/wo": "mlp_bias",
  "mlp/gate": "mlp_bias",
  "mlp/up": "mlp_bias",
  "mlp/down": "mlp_bias",
  "head": "head_bias",
}


def _leaves(lm: Mapping[str, Any], module: str, absent: Mapping) -> Iterator[tuple[str, str]]:
  """Our leaves of a module and how theirs end."""
  if module in absent and absent[module](lm):
    return
  if module in ("embedding", "positions"):
    yield module, "weight"
  elif module.endswith("norm"):
    yield f"{module}/scale", "weight"
    if lm.get("norm") == "layer_norm":
      yield f"{module}/bias", "bias"
  else:
    yield f"{module}/kernel", "weight"
    if lm.get(_BIASES.get(module, ""), False):
      yield f"{module}/bias", "bias"


def _tensor(
  names: Names, lm: Mapping[str, Any], path: str, key: str, layers: tuple[int, ...]
) -> Tensor:
  """The row of one leaf."""
  module, _, leaf = path.rpartition("/")
  options: dict[str, Any] = dict(layers=layers)
  if leaf == "kernel" and names.transposed:
    options["axes"] = (1, 0)
  if module in _QKVO:
    in_out = {"kernel": (lm["width"], -1), "bias": (-1,)}[leaf]
    options["shape"] = in_out[::-1] if names.transposed else in_out
    options |= _fused(names, lm, list(_QKVO).index(module), kernel=leaf == "kernel")
  elif path == "attn/out/kernel":
    options["shape"] = (lm["width"], -1) if names.transposed else (-1, lm["width"])
  return Tensor(key, **options)


def _fused(names: Names, lm: Mapping[str, Any], index: int, *, kernel: bool) -> dict[str, Any]:
  """Which rows are the queries' (index 0), keys' or values'."""
  head_dim = lm.get("head_dim") or lm["width"] // lm["heads"]
  axis = int(kernel and not names.transposed)
  blocks = lambda n: dict(rows=(index * n, (index + 1) * n), axis=axis)
  return {
    "": lambda: {},
    "blocks": lambda: blocks(lm["heads"] * head_dim),
    "heads": lambda: blocks(head_dim) | dict(groups=lm["heads"]),
  }[names.fused]()
