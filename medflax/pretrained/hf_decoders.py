"""Hugging Face's causal language models as settings of our `Decoder`.

Facts are read off the `config.json` of a checkpoint; what such a file may omit is filled in with
the defaults that transformers' configuration classes give it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from medflax.pretrained.hf_decoders_names import NAMES, ignored, mapping
from medflax.utils import UserError, pick

ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
  "silu": "silu",
}


def config_from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
  """The `model.lm` section of a checkpoint's `config.json`.

  Raises:
    UserError: for another `model_type`, or a setting that changes the function computed and
      that our decoder does not have.
  """
  family = pick(FAMILIES, hf.get("model_type", ""), "model_type")
  return {"type": "decoder", **family(hf)}


def _need(hf: Mapping[str, Any], field: str, *allowed: Any) -> None:
  """Refuses a checkpoint whose `field` has a value that would be computed wrongly."""
  if field in hf and hf[field] not in allowed:
    raise UserError(f"config.json: {field}={hf[field]!r} of {hf['model_type']} is not supported")


def _activation(name: str) -> str:
  return pick(ACTIVATIONS, name, "activation of config.json")


def _rope(hf: Mapping[str, Any], theta: float = 10_000.0) -> dict[str, Any]:
  """`rope_theta` and `rope_scaling`, from the keys of transformers 4 or of 5."""
  given = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
  kind = given.get("rope_type") or given.get("type") or "default"
  scaling = pick(_ROPE_SCALINGS, kind, "rope type of config.json")
  theta = given.get("rope_theta") or hf.get("rope_theta") or theta
  return {"rope_theta": float(theta), "rope_scaling": scaling(given)}


_ROPE_SCALINGS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
  "default": lambda given: {},
  "linear": lambda given: {"type": "linear", "factor": given["factor"]},
  "llama3": lambda given: {
    "type": "llama3",
    "factor": given["factor"],
    "low_freq_factor": given["low_freq_factor"],
    "high_freq_factor": given["high_freq_factor"],
    "original_length": given["original_max_position_embeddings"],
  },
}


def _windows(hf: Mapping[str, Any], is_local: Callable[[int], bool]) -> tuple[int, ...]:
  """Windows of the layers as the shortest pattern that repeats; () if there are none.

  Args:
    is_local: whether layer i has a window, where config.json does not list `layer_types`.
  """
  depth, window = hf["num_hidden_layers"], hf.get("sliding_window") or 0
  if types := hf.get("layer_types"):
    local = [kind == "sliding_attention" for kind in types]
  else:
    local = [is_local(i) for i in range(depth)]
  windows = [window if yes else 0 for yes in local]
  if not any(windows):
    return ()
  repeats = lambda n: all(w == windows[i % n] for i, w in enumerate(windows))
  return tuple(windows[: next(n for n in range(1, depth + 1) if repeats(n))])


def _sizes(hf: Mapping[str, Any]) -> dict[str, Any]:
  """The sizes, under the names that most families give them."""
  heads = hf["num_attention_heads"]
  return dict(
    vocab_size=hf["vocab_size"],
    width=hf["hidden_size"],
    depth=hf["num_hidden_layers"],
    heads=heads,
    kv_heads=hf.get("num_key_value_heads") or heads,
    head_dim=hf.get("head_dim") or 0,
    mlp_width=hf["intermediate_size"],
  )


def _llama(hf: Mapping[str, Any]) -> dict[str, Any]:
  bias = hf.get("attention_bias", False)
  return dict(
    **_sizes(hf),
    **_rope(hf),
    norm_eps=hf["rms_norm_eps"],
    activation=_activation(hf["hidden_act"]),
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=hf.get("mlp_bias", False),
    tie_embeddings=hf.get("tie_word_embeddings", False),
  )


def _mistral(hf: Mapping[str, Any]) -> dict[str, Any]:
  return _llama(hf) | dict(windows=_windows(hf, lambda i: True))


def _qwen2(hf: Mapping[str, Any]) -> dict[str, Any]:
  uses = hf.get("use_sliding_window", False)
  windows = _windows(hf, lambda i: i >= hf["max_window_layers"]) if uses else ()
  return _llama(hf) | dict(qkv_bias=True, windows=windows)


def _qwen3(hf: Mapping[str, Any]) -> dict[str, Any]:
  bias = hf.get("attention_bias", False)
  head_dim = hf.get("head_dim", 128)
  return _qwen2(hf) | dict(head_dim=head_dim, qkv_bias=bias, qk_norm="head")


def _gemma(hf: Mapping[str, Any]) -> dict[str, Any]:
  # The first Gemma's files say "gelu" and mean its tanh form, as transformers reads them.
  hf = {"head_dim": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, **hf}
  hf["hidden_act"] = hf.get("hidden_activation") or "gelu_pytorch_tanh"
  return _llama(hf) | dict(norm="zero_rms_norm", embed_scale=math.sqrt(hf["hidden_size"]))


def _gemma2(hf: Mapping[str, Any]) -> dict[str, Any]:
  hf = {"sliding_window": 4096, "query_pre_attn_scalar": 256, **hf}
  return _gemma(hf) | dict(
    residual="sandwich",
    windows=_windows(hf, lambda i: i % 2 == 0),
    query_scale=hf["query_pre_attn_scalar"] ** -0.5,
    attn_softcap=hf.get("attn_logit_softcapping", 50.0) or 0.0,
    logit_softcap=hf.get("final_logit_softcapping", 30.0) or 0.0,
  )


def _gemma3(hf: Mapping[str, Any]) -> dict[str, Any]:
  published = {  # files hold what differs from the 4B model
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
  }
  hf = published | dict(hf)
  _need(hf, "use_bidirectional_attention", False, None)
  every = hf.get("sliding_window_pattern") or hf.get("_sliding_window_pattern") or 6
  local, rope = hf["rope_local_base_freq"], hf.get("rope_parameters") or {}
  if "full_attention" in rope:  # transformers 5
    local = rope["sliding_attention"]["rope_theta"]
    hf = hf | {"rope_parameters": rope["full_attention"]}
  return _gemma2(hf) | dict(
    qk_norm="head",
    windows=_windows(hf, lambda i: (i + 1) % every != 0),
    rope_local_theta=float(local),
  )


# Families with LayerNorm and a plain MLP, all of whose linear maps have a bias.
BIASED = dict(norm="layer_norm", mlp="plain", qkv_bias=True, out_bias=True, mlp_bias=True)


def _gpt2_sizes(hf: Mapping[str, Any]) -> dict[str, Any]:
  width, heads = hf["n_embd"], hf["n_head"]
  return dict(
    vocab_size=hf["vocab_size"],
    width=width,
    depth=hf["n_layer"],
    heads=heads,
    kv_heads=heads,
    mlp_width=hf.get("n_inner") or 4 * width,
    norm_eps=hf["layer_norm_epsilon"],
    activation=_activation(hf.get("activation_function", "gelu_new")),
  )


def _gpt2(hf: Mapping[str, Any]) -> dict[str, Any]:
  _need(hf, "add_cross_attention", False)
  return dict(
    **_gpt2_sizes(hf),
    **BIASED,
    rope_theta=0.0,
    learned_positions=hf["n_positions"],
    query_scale=0.0 if hf.get("scale_attn_weights", True) else 1.0,
    inverse_depth_scale=hf.get("scale_attn_by_inverse_layer_idx", False),
    tie_embeddings=hf.get("tie_word_embeddings", True),
  )


def _gptj(hf: Mapping[str, Any]) -> dict[str, Any]:
  biases = dict(qkv_bias=False, out_bias=False)
  tied = hf.get("tie_word_embeddings", False)
  return dict(
    **_gpt2_sizes(hf),
    **BIASED | biases,
    residual="parallel_shared",
    rope_dim=hf.get("rotary_dim") or 0,
    rope_interleaved=True,
    tie_embeddings=tied,
    head_bias=not tied,
  )


def _gpt_neox(hf: Mapping[str, Any]) -> dict[str, Any]:
  bias = hf.get("attention_bias", True)
  sizes = _sizes(hf)
  given = hf.get("rope_parameters") or {}
  share = given.get("partial_rotary_factor", hf.get("rotary_pct", 0.25))
  return dict(
    **sizes,
    **BIASED | dict(qkv_bias=bias, out_bias=bias),
    **_rope(hf, float(hf.get("rotary_emb_base", 10_000))),
    norm_eps=hf["layer_norm_eps"],
    activation=_activation(hf["hidden_act"]),
    residual="parallel" if hf.get("use_parallel_residual", True) else "pre",
    rope_dim=int(share * (sizes["width"] // sizes["heads"])),
    tie_embeddings=hf.get("tie_word_embeddings", False),
  )


def _phi(hf: Mapping[str, Any]) -> dict[str, Any]:
  _need(hf, "qk_layernorm", False)
  given = hf.get("rope_parameters") or {}
  share = given.get("partial_rotary_factor", hf.get("partial_rotary_factor", 0.5))
  tied = hf.get("tie_word_embeddings", False)
  sizes = _sizes(hf)
  return dict(
    **sizes,
    **BIASED,
    **_rope(hf),
    norm_eps=hf["layer_norm_eps"],
    activation=_activation(hf["hidden_act"]),
    residual="parallel_shared",
    rope_dim=int(share * (sizes["width"] // sizes["heads"])),
    tie_embeddings=tied,
    head_bias=not tied,
  )


def _opt(hf: Mapping[str, Any]) -> dict[str, Any]:
  _need(hf, "layer_norm_elementwise_affine", True)
  bias = hf.get("enable_bias", True)
  before = hf.get("do_layer_norm_before", True)
  width, narrow = hf["hidden_size"], hf.get("word_embed_proj_dim") or hf["hidden_size"]
  return dict(
    **_sizes({**hf, "intermediate_size": hf["ffn_dim"]}),
    **BIASED | dict(qkv_bias=bias, out_bias=bias, mlp_bias=bias),
    norm_eps=1e-5,
    activation=_activation(hf.get("activation_function", "relu")),
    residual="pre" if before else "post",
    final_norm=before and not hf.get("_remove_final_layer_norm", False),
    embed_width=0 if narrow == width else narrow,
    rope_theta=0.0,
    learned_positions=hf["max_position_embeddings"] + 2,
    position_offset=2,
    tie_embeddings=hf.get("tie_word_embeddings", True),
  )


def _biogpt(hf: Mapping[str, Any]) -> dict[str, Any]:
  return dict(
    **_sizes(hf),
    **BIASED,
    norm_eps=1e-5,  # transformers does not read layer_norm_eps here
    activation=_activation(hf["hidden_act"]),
    embed_scale=math.sqrt(hf["hidden_size"]) if hf.get("scale_embedding", True) else 1.0,
    rope_theta=0.0,
    learned_positions=hf["max_position_embeddings"] + 2,
    position_offset=2,
    tie_embeddings=hf.get("tie_word_embeddings", True),
  )


def _mpt(hf: Mapping[str, Any]) -> dict[str, Any]:
  attention = {"model_type": hf["model_type"], **(hf.get("attn_config") or {})}
  _need(hf, "no_bias", True)
  _need(hf, "logit_scale", None)
  _need(attention, "alibi", True)
  _need(attention, "prefix_lm", False)
  width, heads = hf["d_model"], hf["n_heads"]
  return dict(
    vocab_size=hf["vocab_size"],
    width=width,
    depth=hf["n_layers"],
    heads=heads,
    kv_heads=heads,
    mlp_width=hf.get("expansion_ratio", 4) * width,
    norm="layer_norm_no_bias",
    norm_eps=hf.get("layer_norm_epsilon", 1e-5),
    mlp="plain",
    activation="gelu",
    rope_theta=0.0,
    alibi_bias_max=float(attention.get("alibi_bias_max", 8)),
    query_scale=attention.get("softmax_scale") or 0.0,
    qkv_clip=attention.get("clip_qkv") or 0.0,
    qk_norm="all" if attention.get("qk_ln") else "",
    tie_embeddings=hf.get("tie_word_embeddings", True),
  )


def _mosaic_gpt(hf: Mapping[str, Any]) -> dict[str, Any]:
  """MPT before it was MPT, with some fields named otherwise: OpenFlamingo-3B's MPT-1B."""
  names = ("alibi", "alibi_bias_max", "prefix_lm", "softmax_scale")
  attention = {"alibi": False} | {name: hf[name] for name in names if name in hf}
  attention |= dict(clip_qkv=hf.get("attn_clip_qkv"), qk_ln=hf.get("attn_qk_ln", False))
  return _mpt({**hf, "expansion_ratio": hf.get("mlp_ratio", 4), "attn_config": attention})


FAMILIES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
  "biogpt": _biogpt,
  "gemma": _gemma,
  "gemma2": _gemma2,
  "gemma3_text": _gemma3,
  "gpt2": _gpt2,
  "gpt_neox": _gpt_neox,
  "gptj": _gptj,
  "llama": _llama,
  "mistral": _mistral,
  "mosaic_gpt": _mosaic_gpt,
  "mpt": _mpt,
  "opt": _opt,
  "phi": _phi,
  "qwen2": _qwen2,
  "qwen3": _qwen3,
}

__all__ = ["FAMILIES", "NAMES", "config_from_hf", "ignored", "mapping"]
