"""RadFM's 3D ViT ⇄ `medflax.models.vision.vit`."""

from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained.hf_vision import linear, norm
from medflax.pretrained.mapping import Mapping, Tensor

SLICES = 4  # an image is a volume of so many equal slices
# The published sizes; the checkpoint has no config file.
PUBLISHED = dict(
  image_size=512,
  image_patch_size=32,
  frames=512,
  frame_patch_size=4,
  dim=768,
  depth=12,
  heads=8,
  mlp_dim=2048,
  dim_head=64,
)


def config_from_radfm(
  sizes: AnyMapping[str, int] = PUBLISHED,
  *,
  volume_size: tuple[int, int, int] = (64, 256, 256),
  image_size: tuple[int, int] = (512, 512),
) -> dict[str, Any]:
  """Our tower section from the arguments of RadFM's ViT.

  Args:
    sizes: as `PUBLISHED`.
    volume_size: (depth, height, width) of the volumes to be encoded, up to the tables' size.
    image_size: of the images to be encoded. Dropout (0.1 while they trained) is left out.
  """
  patch = (sizes["frame_patch_size"], sizes["image_patch_size"], sizes["image_patch_size"])
  table = (sizes["frames"], sizes["image_size"], sizes["image_size"])
  common = dict(patch=patch, table=table, channels=3)
  return dict(
    type="vit",
    width=sizes["dim"],
    depth=sizes["depth"],
    heads=sizes["heads"],
    head_dim=sizes["dim_head"],
    mlp_width=sizes["mlp_dim"],
    inputs=dict(
      image=dict(size=image_size, depth=SLICES, **common),
      volume=dict(size=volume_size, **common),
    ),
    qkv_bias=False,
    patch_bias=True,
    patch_norms=True,
    positions="axes",
    final_norm=False,
    mean=(0.0,),
    std=(1.0,),
  )


def mapping(section: AnyMapping[str, Any], prefix: str = "vision_encoder.") -> Mapping:
  """Where each leaf of RadFM's tower stands; the checkpoint flattens patches (h, w, d, c)."""
  width, heads_width = section["width"], section["heads"] * section["head_dim"]
  spec = section["inputs"]["volume"]
  d, h, w = spec["patch"]
  c = spec["channels"]
  pixels = dict(shape=(d * h * w * c,), view=(h, w, d, c), axes=(2, 0, 1, 3))
  embed, block = f"{prefix}to_patch_embedding.", f"{prefix}transformer.layers.{{}}."
  stacked = dict(layers=tuple(range(section["depth"])))
  out = {
    **norm("patch_norm_in_volume", f"{embed}1", **pixels),
    "patch_volume/kernel": Tensor(
      f"{embed}2.weight",
      shape=(width, d * h * w * c),
      view=(width, h, w, d, c),
      axes=(3, 1, 2, 4, 0),
    ),
    "patch_volume/bias": Tensor(f"{embed}2.bias"),
    **norm("patch_norm_out_volume", f"{embed}3"),
    **norm("blocks/attn_norm", f"{block}0.norm", **stacked),
    **linear("blocks/out", f"{block}0.fn.to_out.0", shape=(width, heads_width), **stacked),
    **norm("blocks/mlp_norm", f"{block}1.norm", **stacked),
    **linear("blocks/mlp/wi", f"{block}1.fn.net.0", **stacked),
    **linear("blocks/mlp/wo", f"{block}1.fn.net.3", **stacked),
  }
  for i, name in enumerate(("query", "key", "value")):
    rows = (i * heads_width, (i + 1) * heads_width)
    out[f"blocks/{name}/kernel"] = Tensor(
      f"{block}0.fn.to_qkv.weight", rows=rows, axes=(1, 0), shape=(heads_width, width), **stacked
    )
  for axis, name in enumerate(("dep", "row", "col")):
    out[f"position_volume_{axis}"] = Tensor(f"{prefix}pos_embedding.{name}_embed.weight")
  return out
