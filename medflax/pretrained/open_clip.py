"""open_clip's ViT towers, and CLIP's modified ResNets (PMC-CLIP), ⇄ `medflax.models.vision`."""

from collections.abc import Iterator, Sequence
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained.hf_vision import (
  CLIP_MEAN,
  CLIP_STD,
  CONV,
  IMAGENET_MEAN,
  IMAGENET_STD,
  fused_attention,
  linear,
  norm,
  pair,
)
from medflax.pretrained.mapping import Mapping, Tensor

# What a checkpoint holds besides the tower: the text side, counters, the heads left out.
TEXT = (
  r"transformer\..*|ln_final\..*|token_embedding\..*|text_projection|positional_embedding|logit_.*"
)


def config_from_open_clip(config: AnyMapping[str, Any]) -> dict[str, Any]:
  """Our tower section from an open_clip model config (`vision_cfg`, `embed_dim`, `quick_gelu`).

  It returns patch tokens without the final norm, as open_clip up to 2.20 did and as OpenFlamingo
  and Med-Flamingo were trained. `dict(final_norm=True)` is what later versions return;
  `dict(output="class", final_norm=True, projection=embed_dim)` is the image embedding.
  """
  vision = config["vision_cfg"]
  width, size, patch = vision["width"], pair(vision["image_size"]), pair(vision["patch_size"])
  return dict(
    type="vit",
    width=width,
    depth=vision["layers"],
    heads=width // vision.get("head_width", 64),
    mlp_width=int(width * vision.get("mlp_ratio", 4.0)),
    inputs=dict(image=dict(size=size, table=size, patch=patch, channels=3)),
    activation="quick_gelu" if config.get("quick_gelu") else "gelu",
    class_token=True,
    pre_norm=True,
    final_norm=False,
    mean=CLIP_MEAN,
    std=CLIP_STD,
  )


def mapping(section: AnyMapping[str, Any], prefix: str = "visual.") -> Mapping:
  """Where each leaf of a `ViT` with these fields stands in open_clip's state dict."""
  width, [(kind, spec)] = section["width"], section["inputs"].items()
  block = f"{prefix}transformer.resblocks.{{}}."
  stacked = dict(layers=tuple(range(section["depth"])))
  pixels = (width, spec["channels"], *spec["patch"])
  out = {
    f"patch_{kind}/kernel": Tensor(f"{prefix}conv1.weight", axes=CONV, shape=pixels),
    f"position_{kind}": Tensor(f"{prefix}positional_embedding"),
    "class_token": Tensor(f"{prefix}class_embedding"),
    **norm("pre_norm", f"{prefix}ln_pre"),
    **norm("blocks/attn_norm", f"{block}ln_1", **stacked),
    **norm("blocks/mlp_norm", f"{block}ln_2", **stacked),
    **fused_attention("blocks/", f"{block}attn.", width, width, **stacked),
    **linear("blocks/mlp/wi", f"{block}mlp.c_fc", **stacked),
    **linear("blocks/mlp/wo", f"{block}mlp.c_proj", **stacked),
  }
  if section.get("final_norm", True):
    out |= norm("final_norm", f"{prefix}ln_post")
  if section.get("projection"):
    out["projection/kernel"] = Tensor(f"{prefix}proj")
  return out


def resnet_config(
  blocks: Sequence[int] = (3, 4, 6, 3), *, width: int = 64, image_size: int = 512
) -> dict[str, Any]:
  """PMC-CLIP's tower section; fewer stages than four give an earlier one's features.

  MedVInT-TD takes three (1024 channels at a sixteenth of the size), MedVInT-TE all four.
  """
  return dict(
    type="modified_resnet",
    blocks=tuple(blocks),
    width=width,
    inputs=dict(image=dict(size=(image_size, image_size), channels=3)),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
  )


# Names of the stem and the stages: CLIP's own, and by place where the model was cut into an
# nn.Sequential (MedVInT-TD).
CLIP_NAMES = {
  **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)},
  **{f"bn{i}": f"bn{i}" for i in (1, 2, 3)},
  **{f"layer{i}": f"layer{i}" for i in (1, 2, 3, 4)},
}
SEQUENTIAL_NAMES = dict(
  **dict(conv1="0", bn1="1", conv2="3", bn2="4", conv3="6", bn3="7"),
  **dict(layer1="10", layer2="11", layer3="12", layer4="13"),
)


def resnet_mapping(
  section: AnyMapping[str, Any],
  prefix: str = "visual.",
  names: AnyMapping[str, str] = CLIP_NAMES,
) -> Mapping:
  """Where each leaf of a `ModifiedResNet` with these fields stands in the checkpoint.

  BatchNorm's counters (`num_batches_tracked`) are no weights and have no leaf.
  """
  out = {}
  for i in (1, 2, 3):
    out[f"conv{i}/kernel"] = _conv(f"{prefix}{names[f'conv{i}']}.weight")
    out |= _batch_norm(f"bn{i}", f"{prefix}{names[f'bn{i}']}")
  for stage, block in _places(section["blocks"]):
    path, key = f"layer{stage}_{block}", f"{prefix}{names[f'layer{stage}']}.{block}."
    for i in (1, 2, 3):
      out[f"{path}/conv{i}/kernel"] = _conv(f"{key}conv{i}.weight")
      out |= _batch_norm(f"{path}/bn{i}", f"{key}bn{i}")
    if block == 0:
      out[f"{path}/downsample/kernel"] = _conv(f"{key}downsample.0.weight")
      out |= _batch_norm(f"{path}/downsample_bn", f"{key}downsample.1")
  return out | _mean_pool(section, f"{prefix}attnpool.") if section.get("projection") else out


def _places(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
  for stage, count in enumerate(blocks, start=1):
    yield from ((stage, block) for block in range(count))


def _conv(key: str) -> Tensor:
  return Tensor(key, axes=CONV)


def _batch_norm(path: str, key: str) -> Mapping:
  names = dict(scale="weight", bias="bias", mean="running_mean", var="running_var")
  return {f"{path}/{ours}": Tensor(f"{key}.{theirs}") for ours, theirs in names.items()}


def _mean_pool(section: AnyMapping[str, Any], key: str) -> Mapping:
  width = section["width"] * 4 * 2 ** (len(section["blocks"]) - 1)
  out = {"pool/position": Tensor(f"{key}positional_embedding")}
  for ours, theirs in dict(query="q_proj", key="k_proj", value="v_proj").items():
    out |= linear(f"pool/{ours}", f"{key}{theirs}", shape=(width, width))
    out[f"pool/{ours}/bias"] = Tensor(f"{key}{theirs}.bias", shape=(width,))
  return out | linear("pool/out", f"{key}c_proj", shape=(-1, width))
