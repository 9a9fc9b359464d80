"""T5 and Pix2Struct of Hugging Face ⇄ `medflax.models.language.encoder_decoder`."""

from collections.abc import Callable
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained.mapping import Mapping, Tensor
from medflax.utils import pick

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu"}
# Tensors that stand there twice.
IGNORE = r"(encoder|decoder)\.embed_tokens\.weight|lm_head\.weight"


def config_from_hf(hf: AnyMapping[str, Any]) -> dict[str, Any]:
  """The fields of an `EncoderDecoder`, with its type, from a `config.json`.

  Raises:
    UserError: for another model type or activation.
  """
  return {"type": "encoder_decoder"} | pick(FAMILIES, hf["model_type"], "model_type")(hf)


def _layers(hf: AnyMapping[str, Any], heads: int, depth: int, gated: bool) -> dict[str, Any]:
  return dict(
    depth=depth,
    heads=heads,
    kv_heads=heads,
    head_dim=hf["d_kv"],
    mlp_width=hf["d_ff"],
    mlp="gated" if gated else "plain",
    activation=pick(ACTIVATIONS, hf["dense_act_fn"], "activation of config.json"),
    norm_eps=hf.get("layer_norm_epsilon", hf.get("layer_norm_eps", 1e-6)),
    query_scale=1.0,
  )


def _relative(hf: AnyMapping[str, Any]) -> dict[str, int]:
  return dict(
    buckets=hf["relative_attention_num_buckets"],
    max_distance=hf["relative_attention_max_distance"],
  )


def _t5(hf: AnyMapping[str, Any]) -> dict[str, Any]:
  gated = hf["feed_forward_proj"].startswith("gated-")
  plain = hf["feed_forward_proj"].removeprefix("gated-")
  # "gated-gelu" is GELU's tanh form, whatever it says
  hf = {**hf, "dense_act_fn": "gelu_new" if gated and plain == "gelu" else plain}
  depths = (hf["num_layers"], hf.get("num_decoder_layers") or hf["num_layers"])
  encoder, decoder = (_layers(hf, hf["num_heads"], depth, gated) for depth in depths)
  return dict(
    vocab_size=hf["vocab_size"],
    width=hf["d_model"],
    encoder_layers=encoder | _relative(hf),
    decoder_layers=decoder | _relative(hf),
    places=0,
    tie_embeddings=hf.get("tie_word_embeddings", True),
  )


def _pix2struct(hf: AnyMapping[str, Any]) -> dict[str, Any]:
  vision, text = hf["vision_config"], hf["text_config"]
  encoder = _layers(vision, vision["num_attention_heads"], vision["num_hidden_layers"], True)
  decoder = _layers(text, text["num_heads"], text["num_layers"], True)
  return dict(
    vocab_size=text["vocab_size"],
    width=text["hidden_size"],
    encoder_layers=encoder,
    decoder_layers=decoder | _relative(text),
    places=vision["seq_len"],
    tie_embeddings=False,
  )


FAMILIES: dict[str, Callable[[AnyMapping[str, Any]], dict[str, Any]]] = {
  "t5": _t5,
  "mt5": _t5,
  "pix2struct": _pix2struct,
}


def mapping(section: AnyMapping[str, Any]) -> Mapping:
  """Where each leaf of an `EncoderDecoder` with these fields stands in the checkpoint."""
  return _pix2struct_mapping(section) if section["places"] else _t5_mapping(section)


def _attention(
  path: str, key: str, names: str, section: AnyMapping[str, Any], layers: tuple[int, ...]
) -> Mapping:
  """Kernels of queries, keys, values and output; `names` are theirs, in this order."""
  width, common = section["width"], dict(layers=layers, axes=(1, 0))
  query, k, value, out = (f"{key}.{name}.weight" for name in names.split())
  inputs = {"query": query, "key": k, "value": value}
  table = {f"{path}/{n}/kernel": Tensor(x, shape=(-1, width), **common) for n, x in inputs.items()}
  return table | {f"{path}/out/kernel": Tensor(out, shape=(width, -1), **common)}


def _mlp(path: str, key: str, gated: bool, layers: tuple[int, ...]) -> Mapping:
  gated_names = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
  names = gated_names if gated else {"wi": "wi", "wo": "wo"}
  return {
    f"{path}/{ours}/kernel": Tensor(f"{key}.{theirs}.weight", layers=layers, axes=(1, 0))
    for ours, theirs in names.items()
  }


def _t5_mapping(section: AnyMapping[str, Any]) -> Mapping:
  table = {"embedding": Tensor("shared.weight")}
  if not section["tie_embeddings"]:
    table["head"] = Tensor("lm_head.weight", axes=(1, 0))
  parts = {"attn": "SelfAttention", "cross": "EncDecAttention", "mlp": "DenseReluDense"}
  for side, used in (("encoder", ("attn", "mlp")), ("decoder", ("attn", "cross", "mlp"))):
    fields = section[f"{side}_layers"]
    numbers = tuple(range(fields["depth"]))
    for i, part in enumerate(used):
      key = f"{side}.block.{{}}.layer.{i}"
      path = f"{side}/layers/{part}"
      table[f"{path}_norm/scale"] = Tensor(f"{key}.layer_norm.weight", layers=numbers)
      if part == "mlp":
        table |= _mlp(path, f"{key}.{parts[part]}", fields["mlp"] == "gated", numbers)
      else:
        table |= _attention(path, f"{key}.{parts[part]}", "q k v o", section, numbers)
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    table[f"{side}/relative_bias"] = Tensor(bias)
    table[f"{side}/norm/scale"] = Tensor(f"{side}.final_layer_norm.weight")
  return table


def _pix2struct_mapping(section: AnyMapping[str, Any]) -> Mapping:
  numbers = {side: tuple(range(section[f"{side}_layers"]["depth"])) for side in _SIDES}
  names = "query key value output"
  encoder, embeddings = "encoder.encoder.layer.{}", "encoder.embeddings"
  decoder = "decoder.layer.{}"
  table = {
    "embedding": Tensor("decoder.embed_tokens.weight"),
    "head": Tensor("decoder.lm_head.weight", axes=(1, 0)),
    "patches/project/kernel": Tensor(f"{embeddings}.patch_projection.weight", axes=(1, 0)),
    "patches/project/bias": Tensor(f"{embeddings}.patch_projection.bias"),
    "patches/row": Tensor(f"{embeddings}.row_embedder.weight"),
    "patches/column": Tensor(f"{embeddings}.column_embedder.weight"),
    "encoder/norm/scale": Tensor("encoder.layernorm.weight"),
    "decoder/norm/scale": Tensor("decoder.final_layer_norm.weight"),
    "decoder/relative_bias": Tensor(
      "decoder.layer.0.self_attention.attention.relative_attention_bias.weight"
    ),
  }
  norms = {
    "encoder/layers/attn_norm": f"{encoder}.pre_attention_layer_norm",
    "encoder/layers/mlp_norm": f"{encoder}.pre_mlp_layer_norm",
    "decoder/layers/attn_norm": f"{decoder}.self_attention.layer_norm",
    "decoder/layers/cross_norm": f"{decoder}.encoder_decoder_attention.layer_norm",
    "decoder/layers/mlp_norm": f"{decoder}.mlp.layer_norm",
  }
  for path, key in norms.items():
    table[f"{path}/scale"] = Tensor(f"{key}.weight", layers=numbers[path.split("/")[0]])
  attentions = {
    "encoder/layers/attn": f"{encoder}.attention",
    "decoder/layers/attn": f"{decoder}.self_attention.attention",
    "decoder/layers/cross": f"{decoder}.encoder_decoder_attention.attention",
  }
  for path, key in attentions.items():
    table |= _attention(path, key, names, section, numbers[path.split("/")[0]])
  table |= _mlp("encoder/layers/mlp", f"{encoder}.mlp", True, numbers["encoder"])
  return table | _mlp(
    "decoder/layers/mlp", f"{decoder}.mlp.DenseReluDense", True, numbers["decoder"]
  )


_SIDES = ("encoder", "decoder")
