"""Vision Transformer over patches of any number of dimensions.

One stack of blocks serves images (2D), volumes (3D) and signals (1D); each media kind has its
own patch projection and position table, so 2D and 3D inputs can stand in one batch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from medflax.models import layers
from medflax.models.attention import dot_product_attention


def patchify(x: Float[Array, "b *size c"], patch: Sequence[int]) -> Float[Array, "b patches p"]:
  """Cuts an N-dimensional grid into non-overlapping patches, row-major, channels last.

  Raises:
    ValueError: if a side is not a multiple of the patch's.
  """
  batch, *size, channels = x.shape
  if len(size) != len(patch) or any(s % p for s, p in zip(size, patch, strict=True)):
    raise ValueError(f"input of size {tuple(size)} does not divide into patches of {tuple(patch)}")
  grid = [s // p for s, p in zip(size, patch, strict=True)]
  n = len(grid)
  x = x.reshape(batch, *(d for pair in zip(grid, patch, strict=True) for d in pair), channels)
  x = x.transpose(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
  return x.reshape(batch, math.prod(grid), math.prod(patch) * channels)


def fold_depth(
  x: Float[Array, "b d h w c"], strides: tuple[int, ...]
) -> tuple[tuple[int, int], Float[Array, "bd h w c3"]]:
  """Slices as a batch of images, each with its two neighbours as channels, every stride-th kept.

  A 2D convolution of the result is a 3D one of `x`; XLA has no fast 3D convolution on CPUs.

  Returns:
    The shape (b, d) to unfold to, and the images.
  """
  b, depth, h, w, c = x.shape
  stride = strides[0]
  out = -(-depth // stride)
  total = (out - 1) * stride + 3 - depth
  x = jnp.pad(x, ((0, 0), (total // 2, total - total // 2), (0, 0), (0, 0), (0, 0)))
  parts = [x[:, i : i + (out - 1) * stride + 1 : stride] for i in range(3)]
  return (b, out), jnp.concatenate(parts, axis=-1).reshape(b * out, h, w, 3 * c)


class ViTBlock(nn.Module):
  """Pre-norm Transformer encoder block with biases (Dosovitskiy et al. 2021)."""

  heads: int
  mlp_width: int
  activation: str
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b t d"], _: None) -> tuple[Float[Array, "b t d"], None]:
    width = x.shape[-1]
    shape, axes = (self.heads, width // self.heads), ("vision_embed", "heads", "head_dim")
    y = layers.layer_norm(name="attn_norm", dtype=self.dtype)(x)
    query, key, value = (
      layers.dense(shape, axes, name=name, use_bias=True, dtype=self.dtype)(y)
      for name in ("query", "key", "value")
    )
    y = dot_product_attention(query, key, value)
    x = x + layers.dense(
      width, (*axes[1:], axes[0]), name="out", num_inputs=2, use_bias=True, dtype=self.dtype
    )(y)
    y = layers.layer_norm(name="mlp_norm", dtype=self.dtype)(x)
    mlp = layers.MLP(
      self.mlp_width,
      self.activation,
      use_bias=True,
      dtype=self.dtype,
      axis="vision_embed",
      name="mlp",
    )
    return x + mlp(y), None


class ViT(nn.Module):
  """Patch tokens of a batch of media, class token dropped.

  Attributes:
    inputs: for each media kind `{"size": (…), "patch": (…), "channels": c}`.
    mlp_width: hidden width of each block's MLP.
    class_token: whether a learned token joins the patches (CLIP); dropped from the output.
    pre_norm: LayerNorm before the first block (CLIP's `ln_pre`).
    final_norm: LayerNorm after the last block. OpenFlamingo's towers go without.
    stem: output channels of stride-2 3×3 convolutions before the patch projection, each
      followed by `activation`; they make small towers trained from scratch learn far sooner
      (Xiao et al. 2021, Early convolutions help Transformers see better). The patch keeps its
      meaning in input pixels. Empty for the published towers.
    mean, std: per-channel statistics taken off inputs in [0, 1].
    remat: a name in `layers.REMAT_POLICIES`.
  """

  width: int
  depth: int
  heads: int
  mlp_width: int
  inputs: Mapping[str, Mapping[str, Any]]
  activation: str = "gelu"
  class_token: bool = False
  pre_norm: bool = False
  final_norm: bool = True
  stem: Sequence[int] = ()
  mean: Sequence[float] = (0.5,)
  std: Sequence[float] = (0.5,)
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, media: Float[Array, "b *size c"] | UInt8[Array, "b *size c"], kind: str
  ) -> Float[Array, "b patches {self.width}"]:
    """Encodes media of one `kind`; uint8 inputs are taken as [0, 255], floats as [0, 1].

    Raises:
      ValueError: if the media's shape is not the one configured for its kind.
    """
    spec = self.inputs[kind]
    expected = (*spec["size"], spec["channels"])
    if media.shape[1:] != expected:
      raise ValueError(f"{kind} of shape {media.shape[1:]}; model.tower.inputs says {expected}")
    x = media.astype(jnp.float32) / (255.0 if media.dtype == jnp.uint8 else 1.0)
    x = ((x - jnp.asarray(self.mean)) / jnp.asarray(self.std)).astype(self.dtype)
    x = patchify(*self._stem(x, tuple(spec["patch"]), kind))
    axes = ("patch", "vision_embed")
    x = layers.dense(self.width, axes, name=f"patch_{kind}", dtype=self.dtype)(x)
    small = nn.initializers.normal(0.02)
    if self.class_token:
      token = self.param("class_token", layers.param_init(small, "vision_embed"), (self.width,))
      token = jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, self.width))
      x = jnp.concatenate([token, x], axis=1)
    table = self.param(
      f"position_{kind}", layers.param_init(small, "pos", "vision_embed"), x.shape[1:]
    )
    x = x + table.astype(self.dtype)
    if self.pre_norm:
      x = layers.layer_norm(name="pre_norm", dtype=self.dtype)(x)
    blocks = nn.scan(
      layers.remat(ViTBlock, self.remat),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=self.depth,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x, _ = blocks(self.heads, self.mlp_width, self.activation, self.dtype, name="blocks")(x, None)
    if self.final_norm:
      x = layers.layer_norm(name="final_norm", dtype=self.dtype)(x)
    return x[:, 1:] if self.class_token else x

  def _stem(
    self, x: Float[Array, "b *size c"], patch: tuple[int, ...], kind: str
  ) -> tuple[Float[Array, "b *small features"], tuple[int, ...]]:
    """The stem's features and what is left of the patch after its strides."""
    for i, channels in enumerate(self.stem):
      strides = tuple(2 if p % 2 == 0 else 1 for p in patch)
      patch = tuple(p // s for p, s in zip(patch, strides, strict=True))
      lead, x = fold_depth(x, strides) if len(patch) == 3 else (x.shape[:1], x)
      plane = strides[-2:]
      x = nn.Conv(
        channels,
        (3,) * len(plane),
        plane,
        dtype=self.dtype,
        kernel_init=layers.param_init(
          nn.initializers.lecun_normal(), *(None,) * len(plane), "patch", "vision_embed"
        ),
        bias_init=layers.param_init(nn.initializers.zeros, "vision_embed"),
        name=f"stem_{kind}_{i}",
      )(x)
      x = x.reshape(*lead, *x.shape[1:])
      x = layers.ACTIVATIONS[self.activation](x)
    return x, patch
