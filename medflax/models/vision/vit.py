"""Vision Transformer over patches of any number of dimensions.

One stack of blocks serves images (2D), volumes (3D) and signals (1D); each media kind has its
own patch projection and position table, so 2D and 3D inputs can stand in one batch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from medflax.models import layers
from medflax.models.attention import ATTENTIONS, Seen, everything
from medflax.models.vision.pixels import prepare
from medflax.models.vision.pooling import ProbePool
from medflax.models.vision.positions import resize_table, strided_rows
from medflax.parallel.sharding import constrain


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


def _grid(size: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
  return tuple(s // p for s, p in zip(size, patch, strict=True))


class ViTBlock(nn.Module):
  """Pre-norm Transformer encoder block (Dosovitskiy et al. 2021).

  Attributes:
    head_dim: width of a head; 0: the block's width / `heads`.
    qkv_bias: whether queries, keys and values have biases; the rest always does.
    layer_scale: initial value of a learned factor per channel on both branches (Touvron et al.
      2021, CaiT; DINOv2); 0: none.
    attention: a name in `ATTENTIONS`.
  """

  heads: int
  mlp_width: int
  activation: str
  dtype: Any = jnp.float32
  head_dim: int = 0
  qkv_bias: bool = True
  norm_eps: float = 1e-5
  layer_scale: float = 0.0
  attention: str = "xla"

  @nn.compact
  def __call__(
    self, x: Float[Array, "b t d"], mask: Bool[Array, "b t t"] | None
  ) -> tuple[Float[Array, "b t d"], None]:
    width = x.shape[-1]
    shape = (self.heads, self.head_dim or width // self.heads)
    axes = ("vision_embed", "heads", "head_dim")
    y = layers.layer_norm(name="attn_norm", epsilon=self.norm_eps, dtype=self.dtype)(x)
    query, key, value = (
      layers.dense(shape, axes, name=name, use_bias=self.qkv_bias, dtype=self.dtype)(y)
      for name in ("query", "key", "value")
    )
    seen = everything(x.shape[1], len(x)) if mask is None else Seen(mask)
    y = ATTENTIONS[self.attention](query, key, value, seen, scale=None)
    y = layers.dense(
      width, (*axes[1:], axes[0]), name="out", num_inputs=2, use_bias=True, dtype=self.dtype
    )(y)
    x = x + self._scaled(y, "attn_scale")
    y = layers.layer_norm(name="mlp_norm", epsilon=self.norm_eps, dtype=self.dtype)(x)
    mlp = layers.MLP(
      self.mlp_width,
      self.activation,
      use_bias=True,
      dtype=self.dtype,
      axis="vision_embed",
      name="mlp",
    )
    return x + self._scaled(mlp(y), "mlp_scale"), None

  def _scaled(self, y: Float[Array, "b t d"], name: str) -> Float[Array, "b t d"]:
    if not self.layer_scale:
      return y
    init = layers.param_init(nn.initializers.constant(self.layer_scale), "norm")
    return y * self.param(name, init, y.shape[-1:]).astype(self.dtype)


# Which tokens a tower hands on, given how many class tokens stand before the patches.
OUTPUTS = {
  "patches": lambda x, classes: x[:, classes:],
  "tokens": lambda x, classes: x,
  "class": lambda x, classes: x[:, :1],
}


class ViT(nn.Module):
  """Tokens of a batch of media: the patches', unless `output` says otherwise.

  A published tower is a choice of these fields; `medflax.pretrained.hf_vision` and `open_clip`
  read them from its config. To take the features of an earlier layer (LLaVA's last but one),
  leave out the layers after it and the final norm.

  Attributes:
    inputs: for each media kind `{"size": (…), "patch": (…), "channels": c}` and, where wanted,
      "table": the size in pixels that the position table was learned for, if not `size`;
      "depth": for images, that they are repeated to volumes of so many slices and share the
      volumes' weights; `patch` and `table` then have three numbers, depth first (RadFM).
    mlp_width: hidden width of each block's MLP.
    head_dim, qkv_bias, layer_scale: see `ViTBlock`.
    norm_eps: epsilon of every LayerNorm.
    class_token: whether a learned token joins the patches (CLIP).
    pre_norm: LayerNorm before the first block (CLIP's `ln_pre`).
    final_norm: LayerNorm after the last block. OpenFlamingo's towers go without.
    patch_bias: whether the patch projection has a bias (all but CLIP's).
    patch_norms: LayerNorms before and after the patch projection (RadFM).
    positions: "table" (a row a token, bicubically interpolated to other sizes) or "axes" (a
      table for each axis, concatenated, depth last; sizes below the table's take strided rows;
      RadFM).
    output: a name in `OUTPUTS`; "class" is the class token alone.
    attention_pool: SigLIP's pooling head, which makes one token of the output.
    projection: width of a final linear map (CLIP's embedding), 0 for none.
    projection_tanh: gives it a bias and a tanh (the pooler of BERT and ViT).
    stem: output channels of stride-2 3×3 convolutions before the patch projection, each
      followed by `activation`; they make small towers trained from scratch learn far sooner
      (Xiao et al. 2021, Early convolutions help Transformers see better). The patch keeps its
      meaning in input pixels. Empty for the published towers.
    mean, std: per-channel statistics taken off inputs in [0, 1].
    remat: a name in `layers.REMAT_POLICIES`.
    attention: of the blocks, a name in `ATTENTIONS`.
  """

  width: int
  depth: int
  heads: int
  mlp_width: int
  inputs: Mapping[str, Mapping[str, Any]]
  activation: str = "gelu"
  head_dim: int = 0
  qkv_bias: bool = True
  layer_scale: float = 0.0
  norm_eps: float = 1e-5
  class_token: bool = False
  pre_norm: bool = False
  final_norm: bool = True
  patch_bias: bool = False
  patch_norms: bool = False
  positions: str = "table"
  output: str = "patches"
  attention_pool: bool = False
  projection: int = 0
  projection_tanh: bool = False
  stem: Sequence[int] = ()
  mean: Sequence[float] = (0.5,)
  std: Sequence[float] = (0.5,)
  remat: str = "none"
  attention: str = "xla"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, media: Float[Array, "b *size c"] | UInt8[Array, "b *size c"], kind: str
  ) -> Float[Array, "b tokens features"]:
    """Encodes media of one `kind`; uint8 inputs are taken as [0, 255], floats as [0, 1].

    Raises:
      ValueError: if the media's shape is not the one configured for its kind.
    """
    spec = self.inputs[kind]
    x = prepare(media, kind, spec, self.mean, self.std, self.dtype)
    if depth := spec.get("depth"):
      x, kind = jnp.repeat(x[:, None], depth, axis=1), "volume"
    grid = _grid(x.shape[1:-1], spec["patch"])
    x = self._embedded(patchify(*self._stem(x, tuple(spec["patch"]), kind)), kind)
    small = nn.initializers.normal(0.02)
    if self.class_token:
      token = self.param("class_token", layers.param_init(small, "vision_embed"), (self.width,))
      token = jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, self.width))
      x = jnp.concatenate([token, x], axis=1)
    table_size = spec.get("table")
    learned = _grid(table_size, spec["patch"]) if table_size else grid
    tables = {"table": self._table, "axes": self._axis_tables}
    x = x + tables[self.positions](kind, learned, grid).astype(self.dtype)
    if self.pre_norm:
      x = self._norm("pre_norm")(x)
    blocks = layers.stack(ViTBlock, self.depth, self.remat)
    x, _ = blocks(
      self.heads,
      self.mlp_width,
      self.activation,
      self.dtype,
      self.head_dim,
      self.qkv_bias,
      self.norm_eps,
      self.layer_scale,
      self.attention,
      name="blocks",
    )(x, None)
    return self._head(OUTPUTS[self.output](x, int(self.class_token)))

  def _norm(self, name: str) -> nn.LayerNorm:
    return layers.layer_norm(name=name, epsilon=self.norm_eps, dtype=self.dtype)

  def _embedded(self, x: Float[Array, "b patches p"], kind: str) -> Float[Array, "b patches d"]:
    if self.patch_norms:
      x = self._norm(f"patch_norm_in_{kind}")(x)
    axes = ("patch", "vision_embed")
    x = layers.dense(
      self.width, axes, name=f"patch_{kind}", use_bias=self.patch_bias, dtype=self.dtype
    )(x)
    return self._norm(f"patch_norm_out_{kind}")(x) if self.patch_norms else x

  def _table(
    self, kind: str, learned: Sequence[int], grid: Sequence[int]
  ) -> Float[Array, "tokens d"]:
    classes = int(self.class_token)
    init = layers.param_init(nn.initializers.normal(0.02), "pos", "vision_embed")
    shape = (math.prod(learned) + classes, self.width)
    table = self.param(f"position_{kind}", init, shape)
    if learned == grid:
      return table
    return jnp.concatenate([table[:classes], resize_table(table[classes:], learned, grid)])

  def _axis_tables(
    self, kind: str, learned: Sequence[int], grid: Sequence[int]
  ) -> Float[Array, "tokens d"]:
    n = len(grid)
    init = layers.param_init(nn.initializers.uniform(1.0), "pos", "vision_embed")
    parts = []
    for axis in (*range(n)[-2:], *range(n)[:-2]):
      shape = (learned[axis], self.width // n)
      table = self.param(f"position_{kind}_{axis}", init, shape)
      rows = table[strided_rows(learned[axis], grid[axis])]
      rows = rows.reshape([-1 if i == axis else 1 for i in range(n)] + [shape[1]])
      parts.append(jnp.broadcast_to(rows, (*grid, shape[1])))
    return jnp.concatenate(parts, axis=-1).reshape(-1, self.width)

  def _head(self, x: Float[Array, "b tokens d"]) -> Float[Array, "b out features"]:
    """What follows the blocks, on the tokens that are handed on."""
    if self.final_norm:
      x = self._norm("final_norm")(x)
    if self.attention_pool:
      pool = (self.heads, self.mlp_width, self.activation, self.norm_eps, self.dtype)
      x = ProbePool(*pool, name="pool")(x)
    if self.projection:
      options = dict(name="projection", use_bias=self.projection_tanh, dtype=self.dtype)
      x = layers.dense(self.projection, ("vision_embed", "embed"), **options)(x)
    return jnp.tanh(x) if self.projection_tanh else x

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
      x = constrain(x.reshape(*lead, *x.shape[1:]), "media", *[None] * len(patch), None)
      x = layers.ACTIVATIONS[self.activation](x)
    return x, patch
