"""Attention in blocks on TPUs: no array of [tokens, keys], forward or backward.

Splash attention is jax's own kernel (jax.experimental.pallas.ops.tpu.splash_attention), after
FlashAttention (Dao et al. 2022). What a query sees is told by rules instead of a mask: its own
segment, and of that what stands before it, within a window. Blocks that the order or the window
hides are not computed.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from medflax.parallel.sharding import activation_spec

LANES = 128  # queries and keys come in multiples of these
BLOCKS = (512, 256, LANES)  # sizes of a block, the largest that divides is taken


def splash_attention(
  query: Float[Array, "b t heads head_dim"],
  key: Float[Array, "b s kv_heads head_dim"],
  value: Float[Array, "b s kv_heads head_dim"],
  query_segments: Int[Array, "b t"],
  key_segments: Int[Array, "b s"],
  *,
  causal: bool,
  windows: Sequence[int] = (2**30,),
  window: Int[Array, ""] | None = None,
  scale: float | None = None,
  softcap: float = 0.0,
  axes: tuple[str | None, ...] = ("batch", "length", "act_heads"),
  interpret: bool = False,
) -> Float[Array, "b t heads head_dim"]:
  """`attention.dot_product_attention`, where a query sees the keys of its own segment.

  On a mesh each device has its rows, heads and queries, and all keys of these rows.

  Args:
    query_segments, key_segments: from 1. What a query of segment 0 returns, or of one that no
      key has, means nothing.
    causal: whether a query sees only keys up to its own place.
    windows: of how many keys up to itself a causal query may see, all sizes that there are.
    window: which of `windows` it is here; None: the first.
    scale: of the logits; None for head_dim^-0.5.
    softcap: c · tanh(logits / c) bounds the scaled logits; 0 for none.
    axes: logical names of rows, queries and heads, by which devices split them.
    interpret: runs anywhere, slowly: for tests.
  """
  t, heads = query.shape[1:3]
  query = query * jnp.asarray(query.shape[-1] ** -0.5 if scale is None else scale, query.dtype)
  arrays = [_padded(x) for x in (query, key, value, query_segments, key_segments)]
  shape = (len(query), arrays[0].shape[1], arrays[1].shape[1])
  mesh = jax.sharding.get_abstract_mesh()
  split = (shape[0], shape[1] // LANES, key.shape[2])
  rows, length, over_heads = activation_spec(split, *axes) or (None,) * 3
  parts = mesh.shape[length] if length else 1
  each = heads // (mesh.shape[over_heads] if over_heads else 1)
  sizes = _block_sizes(shape[1] // parts, shape[2])

  def kernel(window: int) -> kernels.SplashAttentionKernel:
    mask = masks.MultiHeadMask([_mask(shape[1:], causal, window)] * each)
    options = dict(head_shards=1, q_seq_shards=parts, interpret=interpret)
    options |= dict(block_sizes=sizes, attn_logits_soft_cap=softcap or None)
    return kernels.make_splash_mha(mask, **options)

  made = [kernel(w) for w in windows]
  which = jnp.asarray(0 if window is None else jnp.argmax(jnp.asarray(windows) == window))
  attend = _attend
  if not mesh.empty and mesh.size > 1:
    within = NamedSharding(mesh, PartitionSpec(None, length))
    own = PartitionSpec(rows, length, over_heads)
    keys = PartitionSpec(rows, None, over_heads)
    specs = (own, keys, keys, PartitionSpec(rows, length), PartitionSpec(rows))
    of_kernels = [one.manual_sharding_spec(within) for one in made]
    specs = (of_kernels, PartitionSpec(), *specs)
    attend = jax.shard_map(_attend, mesh=mesh, in_specs=specs, out_specs=own, check_vma=False)
  return attend(made, which, *arrays)[:, :t]


def _attend(made, which, query, key, value, query_segments, key_segments):
  """What one device does."""
  first = lambda x: x.swapaxes(1, 2)  # heads before places
  inputs = (first(query), first(key), first(value))
  segments = kernels.SegmentIds(query_segments, key_segments)
  branches = [lambda *args, one=one: jax.vmap(one)(*args) for one in made]
  return first(jax.lax.switch(which, branches, *inputs, segments))


def _padded(x: Shaped[Array, "b n ..."]) -> Shaped[Array, "b m ..."]:
  """With places of zeros, to a multiple of `LANES`."""
  return jnp.pad(x, [(0, 0), (0, -x.shape[1] % LANES)] + [(0, 0)] * (x.ndim - 2))


def _mask(shape: tuple[int, int], causal: bool, window: int) -> masks.Mask:
  if not causal:
    return masks.FullMask(shape)
  if window >= shape[1]:
    return masks.CausalMask(shape)
  return masks.LocalMask(shape, window_size=(window - 1, 0), offset=0)


def _block_sizes(queries: int, keys: int) -> kernels.BlockSizes:
  q, kv = (next(block for block in BLOCKS if n % block == 0) for n in (queries, keys))
  return kernels.BlockSizes(
    **dict(block_q=q, block_kv=kv, block_kv_compute=kv),
    **dict(block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=kv, block_q_dq=q, block_kv_dq=kv),
  )
