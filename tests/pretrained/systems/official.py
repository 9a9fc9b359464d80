"""Names and shapes of published checkpoints, tiny, as the systems' own code makes them."""

import json

import numpy as np

from tests.pretrained import torch_writer

WIDTH, VOCAB, MLP = 8, 11, 12  # of language models, whose heads have 4 channels


def linear(name, out, inner, *, bias=True):
  return {f"{name}.weight": (out, inner)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name, width):
  return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def llama(prefix, head=None, *, depth=2, kv=WIDTH, buffers=True):
  """`prefix` stands before `embed_tokens`, `head` before `lm_head`."""
  found = {f"{prefix}embed_tokens.weight": (VOCAB, WIDTH), f"{prefix}norm.weight": (WIDTH,)}
  for i in range(depth):
    layer = f"{prefix}layers.{i}."
    for name, out in dict(q=WIDTH, k=kv, v=kv).items():
      found |= linear(f"{layer}self_attn.{name}_proj", out, WIDTH, bias=False)
    found |= linear(f"{layer}self_attn.o_proj", WIDTH, WIDTH, bias=False)
    for name in ("gate", "up"):
      found |= linear(f"{layer}mlp.{name}_proj", MLP, WIDTH, bias=False)
    found |= linear(f"{layer}mlp.down_proj", WIDTH, MLP, bias=False)
    for name in ("input_layernorm", "post_attention_layernorm"):
      found[f"{layer}{name}.weight"] = (WIDTH,)
    if buffers:
      found[f"{layer}self_attn.rotary_emb.inv_freq"] = (2,)
  return found if head is None else found | {f"{head}lm_head.weight": (VOCAB, WIDTH)}


def lora(prefix, names, *, depth=2, rank=4):
  """Factors of LLaMA's projections, spelled as the published files do."""
  found = {}
  for i in range(depth):
    for name in names:
      module = f"{prefix}layers.{i}.self_attn.{name}_proj."
      found |= {f"{module}lora_A.weight": (rank, WIDTH), f"{module}lora_B.weight": (WIDTH, rank)}
  return found


def clip(prefix, *, width=64, depth=2, patch=4, side=2):
  """Hugging Face's; `side` patches each way."""
  at = f"{prefix}embeddings."
  found = {
    f"{at}class_embedding": (width,),
    f"{at}patch_embedding.weight": (width, 3, patch, patch),
    f"{at}position_embedding.weight": (side**2 + 1, width),
    **norm(f"{prefix}pre_layrnorm", width),
    **norm(f"{prefix}post_layernorm", width),
  }
  for i in range(depth):
    layer = f"{prefix}encoder.layers.{i}."
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
      found |= linear(f"{layer}self_attn.{name}", width, width)
    found |= linear(f"{layer}mlp.fc1", 5, width) | linear(f"{layer}mlp.fc2", width, 5)
    found |= norm(f"{layer}layer_norm1", width) | norm(f"{layer}layer_norm2", width)
  return found


def batch_norm(name, width):
  counted = {f"{name}.{part}": (width,) for part in ("running_mean", "running_var")}
  return norm(name, width) | counted


def resnet(prefix, names, *, blocks=(1, 2, 1, 1), width=4):
  """CLIP's; `names` of convolutions and norms of the stem, and of the stages."""
  found, channels = {}, (3, width // 2, width // 2, width)
  convolutions, norms, stages = names
  for i, (conv, bn) in enumerate(zip(convolutions, norms, strict=True)):
    found[f"{prefix}{conv}.weight"] = (channels[i + 1], channels[i], 3, 3)
    found |= batch_norm(f"{prefix}{bn}", channels[i + 1])
  inner = width
  for i, (stage, count) in enumerate(zip(stages, blocks, strict=False)):
    planes = width * 2**i
    for j in range(count):
      block = f"{prefix}{stage}.{j}."
      shapes = ((planes, inner, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1))
      for k, shape in enumerate(shapes, start=1):
        found[f"{block}conv{k}.weight"] = shape
        found |= batch_norm(f"{block}bn{k}", shape[0])
      if j == 0:
        found[f"{block}downsample.0.weight"] = (4 * planes, inner, 1, 1)
        found |= batch_norm(f"{block}downsample.1", 4 * planes)
      inner = 4 * planes
  return found


def attention(name, width):
  """A torch MultiheadAttention."""
  packed = {f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)}
  return packed | linear(f"{name}.out_proj", width, width)


def decoder_layer(name, width, mlp):
  """A torch TransformerDecoderLayer."""
  found = attention(f"{name}.self_attn", width) | attention(f"{name}.multihead_attn", width)
  found |= linear(f"{name}.linear1", mlp, width) | linear(f"{name}.linear2", width, mlp)
  return found | {k: s for i in (1, 2, 3) for k, s in norm(f"{name}.norm{i}", width).items()}


def perceiver(prefix, width, *, latents=3, depth=2, inner=64):
  found = {f"{prefix}latents": (latents, width)} | norm(f"{prefix}norm", width)
  for i in range(depth):
    layer = f"{prefix}layers.{i}."
    found |= norm(f"{layer}0.norm_media", width) | norm(f"{layer}0.norm_latents", width)
    found |= linear(f"{layer}0.to_q", inner, width, bias=False)
    found |= linear(f"{layer}0.to_kv", 2 * inner, width, bias=False)
    found |= linear(f"{layer}0.to_out", width, inner, bias=False)
    found |= norm(f"{layer}1.0", width)
    found |= linear(f"{layer}1.1", 4 * width, width, bias=False)
    found |= linear(f"{layer}1.3", width, 4 * width, bias=False)
  return found


def random(shapes):
  """Tensors of these shapes, none zero; variances positive."""
  rng = np.random.default_rng(0)
  made = {key: rng.normal(0, 0.3, shape).astype(np.float32) for key, shape in shapes.items()}
  return {key: np.abs(x) + 0.5 if key.endswith("running_var") else x for key, x in made.items()}


def save(path, tensors, hf=None):
  """A `.bin` by itself, or in a folder with a config.json."""
  if hf is None:
    torch_writer.save(path, tensors)
    return path
  path.mkdir()
  (path / "config.json").write_text(json.dumps(hf))
  torch_writer.save(path / "pytorch_model.bin", tensors)
  return path
