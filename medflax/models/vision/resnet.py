"""CLIP's modified ResNets, as PMC-CLIP trained one: patch tokens are a stage's pixels.

Radford et al. 2021 (CLIP), section 2.4; He et al. 2019 (ResNet-D): three convolutions for a
stem, average pooling before each strided block's last convolution, attention for a head.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from medflax.models import layers
from medflax.models.vision.pixels import prepare
from medflax.models.vision.pooling import MeanPool
from medflax.parallel.sharding import constrain

EXPANSION = 4  # output channels of a block for each of its inner ones


class StoredBatchNorm(nn.Module):
  """BatchNorm by the statistics it was trained with, which are leaves without gradients.

  Statistics of the batch would make a sample's features depend on its neighbours in the batch.
  """

  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    leaf = lambda name, init: self.param(name, layers.param_init(init, "norm"), x.shape[-1:])
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    scale, bias = leaf("scale", ones), leaf("bias", zeros)
    mean, var = (jax.lax.stop_gradient(leaf(n, i)) for n, i in (("mean", zeros), ("var", ones)))
    factor = scale * jax.lax.rsqrt(var + self.epsilon)
    x = constrain(x, "media", None, None, None)  # behind every convolution, whose weights are split
    return ((x.astype(jnp.float32) - mean) * factor + bias).astype(self.dtype)


def _conv(channels: int, size: int, *, name: str, dtype: Any, stride: int = 1) -> nn.Conv:
  """A square convolution without bias; 3×3 ones pad a pixel on every side, as PyTorch does."""
  init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
  return nn.Conv(
    channels,
    (size, size),
    stride,
    padding=size // 2,
    use_bias=False,
    dtype=dtype,
    kernel_init=layers.param_init(init, None, None, "patch", "vision_embed"),
    name=name,
  )


def _pool(x: Float[Array, "b h w c"], stride: int) -> Float[Array, "b h2 w2 c"]:
  return nn.avg_pool(x, (stride, stride), (stride, stride)) if stride > 1 else x


class Bottleneck(nn.Module):
  """1×1, 3×3, pooling by `stride`, 1×1, beside a shortcut; `project` gives that a convolution."""

  channels: int
  stride: int
  project: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
    norm = lambda name: StoredBatchNorm(dtype=self.dtype, name=name)
    wide = EXPANSION * self.channels
    y = nn.relu(norm("bn1")(_conv(self.channels, 1, name="conv1", dtype=self.dtype)(x)))
    y = nn.relu(norm("bn2")(_conv(self.channels, 3, name="conv2", dtype=self.dtype)(y)))
    y = norm("bn3")(_conv(wide, 1, name="conv3", dtype=self.dtype)(_pool(y, self.stride)))
    if self.project:
      x = _conv(wide, 1, name="downsample", dtype=self.dtype)(_pool(x, self.stride))
      x = norm("downsample_bn")(x)
    return nn.relu(x + y)


class ModifiedResNet(nn.Module):
  """The last stage's pixels as tokens, row by row, or one pooled token.

  Attributes:
    inputs: `{"image": {"size": (h, w), "channels": c}}`.
    blocks: of each stage; (3, 4, 6, 3) is ResNet-50. Three stages are what MedVInT-TD takes.
    width: channels after the stem; each stage ends with `4 · width · 2^i`.
    projection: width of the attention pooling's output (CLIP's embedding); 0: no pooling.
    heads: of the attention pooling.
    mean, std: per-channel statistics taken off inputs in [0, 1].
    remat: a name in `layers.REMAT_POLICIES`.
  """

  inputs: Mapping[str, Mapping[str, Any]]
  blocks: Sequence[int] = (3, 4, 6, 3)
  width: int = 64
  projection: int = 0
  heads: int = 32
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
      ValueError: if the media's shape is not the one configured for its kind.
    """
    x = prepare(media, kind, self.inputs[kind], self.mean, self.std, self.dtype)
    for i, (channels, stride) in enumerate(
      [(self.width // 2, 2), (self.width // 2, 1), (self.width, 1)]
    ):
      x = _conv(channels, 3, stride=stride, name=f"conv{i + 1}", dtype=self.dtype)(x)
      x = nn.relu(StoredBatchNorm(dtype=self.dtype, name=f"bn{i + 1}")(x))
    x = _pool(x, 2)
    block = layers.remat(Bottleneck, self.remat)
    for stage, count in enumerate(self.blocks):
      for i in range(count):
        stride = 2 if stage > 0 and i == 0 else 1
        x = block(self.width * 2**stage, stride, i == 0, self.dtype, name=f"layer{stage + 1}_{i}")(
          x
        )
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    if not self.projection:
      return x
    return MeanPool(self.heads, self.projection, self.dtype, name="pool")(x)
