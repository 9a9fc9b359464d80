"""Swin Transformer: attention within windows of patches, shifted in every other block.

Liu et al. 2021, Swin Transformer: Hierarchical Vision Transformer using Shifted Windows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from medflax.models import layers
from medflax.models.attention import dot_product_attention
from medflax.models.vision.pixels import prepare
from medflax.models.vision.vit import patchify


def to_windows(x: Float[Array, "b h w d"], size: int) -> Float[Array, "b_windows s d"]:
  """Cuts a grid into square windows, row-major, as a batch."""
  b, h, w, d = x.shape
  x = x.reshape(b, h // size, size, w // size, size, d).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(-1, size * size, d)


def from_windows(
  x: Float[Array, "b_windows s d"], size: int, h: int, w: int
) -> Float[Array, "b {h} {w} d"]:
  """The inverse of `to_windows`."""
  x = x.reshape(-1, h // size, w // size, size, size, x.shape[-1])
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, h, w, x.shape[-1])


def offsets(size: int) -> Int[np.ndarray, "s s"]:
  """For each pair of places in a window, the row of the bias table for their offset."""
  y, x = np.divmod(np.arange(size**2), size)
  apart = lambda a: a[:, None] - a[None, :] + size - 1
  return apart(y) * (2 * size - 1) + apart(x)


def neighbours(h: int, w: int, size: int, shift: int) -> Bool[np.ndarray, "windows s s"]:
  """Which places of a shifted window see each other: those that were neighbours before."""
  region = lambda n: np.searchsorted([n - size, n - shift], np.arange(n), side="right")
  ids = 3 * region(h)[:, None] + region(w)[None, :]
  ids = ids.reshape(h // size, size, w // size, size).swapaxes(1, 2).reshape(-1, size * size)
  return ids[:, :, None] == ids[:, None, :]


class SwinBlock(nn.Module):
  """Attention within windows, moved by `shift` patches, then an MLP; both pre-norm."""

  heads: int
  window: int
  shift: int
  mlp_ratio: float
  activation: str
  qkv_bias: bool
  norm_eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
    norm = lambda name: layers.layer_norm(name=name, epsilon=self.norm_eps, dtype=self.dtype)
    x = x + self._attend(norm("attn_norm")(x))
    width = int(x.shape[-1] * self.mlp_ratio)
    mlp = layers.MLP(width, self.activation, True, self.dtype, axis="vision_embed", name="mlp")
    return x + mlp(norm("mlp_norm")(x))

  def _attend(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
    b, h, w, d = x.shape
    # Windows over the border are filled up with zeros, which are attended to as any other.
    x = jnp.pad(x, ((0, 0), (0, -h % self.window), (0, -w % self.window), (0, 0)))
    rows, columns = x.shape[1:3]
    x = to_windows(jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2)), self.window)
    shape, axes = (self.heads, d // self.heads), ("vision_embed", "heads", "head_dim")
    query, key, value = (
      layers.dense(shape, axes, name=name, use_bias=self.qkv_bias, dtype=self.dtype)(x)
      for name in ("query", "key", "value")
    )
    init = layers.param_init(nn.initializers.normal(0.02), "pos", "heads")
    table = self.param("offset_bias", init, ((2 * self.window - 1) ** 2, self.heads))
    bias = table[offsets(self.window)].transpose(2, 0, 1)[None].astype(jnp.float32)
    mask = None
    if self.shift:
      mask = jnp.asarray(neighbours(rows, columns, self.window, self.shift))
      mask = jnp.tile(mask, (b, 1, 1))
    y = dot_product_attention(query, key, value, mask, bias=bias)
    out = (*axes[1:], axes[0])
    y = layers.dense(d, out, name="out", num_inputs=2, use_bias=True, dtype=self.dtype)(y)
    y = from_windows(y, self.window, rows, columns)
    return jnp.roll(y, (self.shift, self.shift), axis=(1, 2))[:, :h, :w]


class Swin(nn.Module):
  """Patch tokens of the last stage, row-major: each stage halves the grid, doubles the width.

  Attributes:
    inputs: `{"image": {"size": (h, w), "patch": (p, p), "channels": c}}`.
    width: of the first stage.
    depths, heads: blocks and attention heads of each stage.
    window: side of a window, in patches. A stage whose grid is no larger does not shift.
    mean, std: per-channel statistics taken off inputs in [0, 1].
    remat: a name in `layers.REMAT_POLICIES`.
  """

  inputs: Mapping[str, Mapping[str, Any]]
  width: int
  depths: Sequence[int]
  heads: Sequence[int]
  window: int
  mlp_ratio: float = 4.0
  activation: str = "gelu"
  qkv_bias: bool = True
  norm_eps: float = 1e-5
  mean: Sequence[float] = (0.5,)
  std: Sequence[float] = (0.5,)
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, media: Float[Array, "b h w c"] | UInt8[Array, "b h w c"], kind: str
  ) -> Float[Array, "b tokens features"]:
    """Encodes images; uint8 inputs are taken as [0, 255], floats as [0, 1].

    Raises:
      ValueError: if the media's shape is not the one configured, or a grid is smaller than a
        window.
    """
    spec = self.inputs[kind]
    x = prepare(media, kind, spec, self.mean, self.std, self.dtype)
    grid = [s // p for s, p in zip(spec["size"], spec["patch"], strict=True)]
    x = patchify(x, spec["patch"]).reshape(len(x), *grid, -1)
    axes = ("patch", "vision_embed")
    x = layers.dense(self.width, axes, name="patch", use_bias=True, dtype=self.dtype)(x)
    x = self._norm("patch_norm")(x)
    block = layers.remat(SwinBlock, self.remat)
    fields = (self.mlp_ratio, self.activation, self.qkv_bias, self.norm_eps, self.dtype)
    for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
      if stage:
        x = self._merged(x, f"merge{stage}")
      if min(x.shape[1:3]) < self.window:
        raise ValueError(
          f"stage {stage} has a grid of {x.shape[1:3]}, less than model.tower.window, {self.window}"
        )
      shift = self.window // 2 if min(x.shape[1:3]) > self.window else 0
      for i in range(depth):
        name = f"stage{stage}_{i}"
        x = block(heads, self.window, shift * (i % 2), *fields, name=name)(x)
    return self._norm("final_norm")(x).reshape(x.shape[0], -1, x.shape[-1])

  def _norm(self, name: str) -> nn.LayerNorm:
    return layers.layer_norm(name=name, epsilon=self.norm_eps, dtype=self.dtype)

  def _merged(self, x: Float[Array, "b h w d"], name: str) -> Float[Array, "b h2 w2 d2"]:
    """Each square of four patches as one of twice the width."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    x = self._norm(f"{name}_norm")(jnp.concatenate(corners, axis=-1))
    axes = ("patch", "vision_embed")
    return layers.dense(x.shape[-1] // 2, axes, name=name, dtype=self.dtype)(x)
