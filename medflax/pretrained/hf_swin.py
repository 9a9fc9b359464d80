"""Hugging Face's Swin Transformer ⇄ `medflax.models.vision.swin`."""

from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained.hf_vision import (
  ACTIVATIONS,
  CONV,
  IMAGENET_MEAN,
  IMAGENET_STD,
  linear,
  norm,
  pair,
  projection,
)
from medflax.pretrained.mapping import Mapping, Tensor
from medflax.utils import UserError, pick

IGNORE = r".*relative_position_index|.*mask_token"  # computed, and for pretraining alone


def config_from_hf(hf: AnyMapping[str, Any]) -> dict[str, Any]:
  """Our tower section from a `config.json` of `model_type` swin.

  Raises:
    UserError: for learned absolute positions, which no published Swin has.
  """
  if hf.get("use_absolute_embeddings"):
    raise UserError("config.json: use_absolute_embeddings of swin is not supported")
  patch, channels = pair(hf["patch_size"]), hf.get("num_channels", 3)
  return dict(
    type="swin",
    inputs=dict(image=dict(size=pair(hf["image_size"]), patch=patch, channels=channels)),
    width=hf["embed_dim"],
    depths=tuple(hf["depths"]),
    heads=tuple(hf["num_heads"]),
    window=hf["window_size"],
    mlp_ratio=float(hf["mlp_ratio"]),
    activation=pick(ACTIVATIONS, hf["hidden_act"], "hidden_act"),
    qkv_bias=hf.get("qkv_bias", True),
    norm_eps=hf["layer_norm_eps"],
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
  )


def mapping(section: AnyMapping[str, Any], prefix: str = "") -> Mapping:
  """Where each leaf of a `Swin` with these fields stands in the checkpoint."""
  [spec] = section["inputs"].values()
  embed = f"{prefix}embeddings."
  pixels = (section["width"], spec["channels"], *spec["patch"])
  out = {
    **linear("patch", f"{embed}patch_embeddings.projection"),
    "patch/kernel": Tensor(f"{embed}patch_embeddings.projection.weight", axes=CONV, shape=pixels),
    **norm("patch_norm", f"{embed}norm"),
    **norm("final_norm", f"{prefix}layernorm"),
  }
  for stage, depth in enumerate(section["depths"]):
    if stage:
      key = f"{prefix}encoder.layers.{stage - 1}.downsample."
      out |= norm(f"merge{stage}_norm", f"{key}norm")
      out |= linear(f"merge{stage}", f"{key}reduction", bias=False)
    for i in range(depth):
      key = f"{prefix}encoder.layers.{stage}.blocks.{i}."
      width = section["width"] * 2**stage
      out |= _block(f"stage{stage}_{i}/", key, width, section["qkv_bias"])
  return out


def _block(path: str, key: str, width: int, bias: bool) -> Mapping:
  attention = f"{key}attention.self."
  out = {
    **norm(f"{path}attn_norm", f"{key}layernorm_before"),
    **norm(f"{path}mlp_norm", f"{key}layernorm_after"),
    f"{path}offset_bias": Tensor(f"{attention}relative_position_bias_table"),
    **linear(f"{path}out", f"{key}attention.output.dense", shape=(width, width)),
    **linear(f"{path}mlp/wi", f"{key}intermediate.dense"),
    **linear(f"{path}mlp/wo", f"{key}output.dense"),
  }
  for name in ("query", "key", "value"):
    out |= projection(f"{path}{name}", f"{attention}{name}", width, bias=bias)
  return out
