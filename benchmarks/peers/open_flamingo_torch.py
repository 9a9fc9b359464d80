r"""The peer of the comparisons in docs/benchmarks.md: OpenFlamingo in torch, random weights.

Needs torch, torchvision, open-flamingo and its requirements, and vit-pytorch, whose 3D ViT is
RadFM's; not medflax:

pip install torch==2.13.0 torchvision transformers==5.23.0 einops einops-exts ftfy regex \
  sentencepiece
pip install --no-deps open_clip_torch==3.3.0 timm open-flamingo==2.0.1 vit-pytorch

Prints a line of JSON with versions and sizes; then, for each line it reads, the name of a call,
makes that call and prints the seconds it took. It stops where its input ends.
"""

import argparse
import functools
import json
import os
import sys
import time
import types

import torch
import transformers
from open_flamingo.src import flamingo
from open_flamingo.src.flamingo_lm import FlamingoLMMixin
from open_flamingo.src.helpers import PerceiverResampler
from open_flamingo.src.utils import extend_instance
from vit_pytorch import vit_3d

VOCAB, END_OF_CHUNK, IMAGE, PAD = 32_000, 31_998, 31_999, 0
FEATURES = 256  # of an image, as many as they are wide


class GivenFeatures(torch.nn.Module):
  """Stands for CLIP: images are given as the features that it would make of them."""

  def forward(self, x):
    return None, x[:, :, 0, :]


def small_flamingo():
  """LLaMA 256 wide, 8 deep, a gated block every 2 layers, a resampler of 2; gates half open."""
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=256,
    intermediate_size=688,
    num_hidden_layers=8,
    num_attention_heads=8,
    max_position_embeddings=512,
    pad_token_id=PAD,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=False,
  )
  lm = transformers.LlamaForCausalLM(config)
  lm.generation_config.eos_token_id = None
  lm.generation_config.pad_token_id = PAD
  extend_instance(lm, FlamingoLMMixin)
  lm.set_decoder_layers_attr_name("model.layers")
  flamingo.PerceiverResampler = functools.partial(PerceiverResampler, depth=2)
  vision = types.SimpleNamespace(visual=GivenFeatures())
  model = flamingo.Flamingo(vision, lm, END_OF_CHUNK, IMAGE, FEATURES, cross_attn_every_n_layers=2)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if name.endswith("_gate"):
        parameter.fill_(0.5)
  model.requires_grad_(False)
  model.perceiver.requires_grad_(True)
  model.lang_encoder.gated_cross_attn_layers.requires_grad_(True)
  model.lang_encoder.get_input_embeddings().requires_grad_(True)
  return model


def prompts(rows, length, places):
  """Random tokens with images at `places`, an end of chunk before each but the first."""
  tokens = torch.randint(3, END_OF_CHUNK - 8, (rows, length))
  tokens[:, places] = IMAGE
  tokens[:, [place - 1 for place in places[1:]]] = END_OF_CHUNK
  return tokens


def generation(flags):
  """Greedy generation behind `flags.images` images."""
  model = small_flamingo().eval()
  rows, length, images = flags.rows, flags.length, flags.images
  tokens = prompts(rows, length, flags.places)
  mask = torch.ones_like(tokens)
  # transformers 5 drops a mask of ones alone, without which OpenFlamingo fails: one left pad.
  tokens[1:, 0], mask[1:, 0] = PAD, 0
  media = torch.randn(rows, images, 1, FEATURES, 1, FEATURES)

  def generate(count):
    out = model.generate(
      media,
      tokens,
      attention_mask=mask,
      max_new_tokens=count,
      min_new_tokens=count,
      do_sample=False,
      pad_token_id=PAD,
      eos_token_id=2,
    )
    assert out.shape[1] == length + count

  calls = {"generate": lambda: generate(flags.new), "first": lambda: generate(1)}
  return model, {name: torch.no_grad()(call) for name, call in calls.items()}


def training(flags):
  """The train step of OpenFlamingo's training script, and a forward pass."""
  model = small_flamingo().train()
  tokens = prompts(flags.rows, flags.length, flags.places)
  tokens[:, -1] = END_OF_CHUNK
  media = torch.randn(flags.rows, flags.images, 1, FEATURES, 1, FEATURES)
  labels = torch.where(tokens == IMAGE, -100, tokens)
  chosen = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
  gated = [p for name, p in chosen if "gated_cross_attn" in name]
  rest = [p for name, p in chosen if "gated_cross_attn" not in name]
  groups = [dict(params=gated, weight_decay=0.1), dict(params=rest, weight_decay=0.0)]
  optimizer = torch.optim.AdamW(groups, lr=1e-4)
  table = model.lang_encoder.get_input_embeddings().weight
  added = torch.zeros_like(table)
  added[[END_OF_CHUNK, IMAGE]] = 1

  def loss():
    return model(media, tokens, attention_mask=torch.ones_like(tokens), labels=labels)[0]

  def step():
    loss().backward()
    table.grad = table.grad * added  # as OpenFlamingo: the two tokens that it added are learnt
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return model, {"train_step": step, "forward": torch.no_grad()(loss)}


def perceiver(flags):
  """Flamingo's resampler, 1024 wide, 6 deep, on `flags.images` images."""
  torch.manual_seed(0)
  model = PerceiverResampler(dim=1024)
  x = torch.randn(1, flags.images, 1, 256, 1024)

  def forward_backward():
    model.zero_grad(set_to_none=True)
    model(x).square().mean().backward()

  return model, {
    "forward": torch.no_grad()(lambda: model(x)),
    "forward_backward": forward_backward,
  }


def vit3d(flags):
  """RadFM's tower on one volume of 256 × 256 × 64: patches of 32 × 32 × 4, no class token."""
  del flags
  torch.manual_seed(0)
  model = vit_3d.ViT(
    image_size=256,
    image_patch_size=32,
    frames=64,
    frame_patch_size=4,
    num_classes=1,
    dim=768,
    depth=12,
    heads=8,
    mlp_dim=2048,
    dim_head=64,
  )
  tower = torch.nn.ModuleList([model.to_patch_embedding, model.transformer]).eval()
  x, table = torch.randn(1, 3, 64, 256, 256), torch.randn(1, 1024, 768)

  def forward():
    patches = model.to_patch_embedding(x)
    return model.transformer(patches.reshape(1, 1024, 768) + table)

  return tower, {"forward": torch.no_grad()(forward)}


CASES = {
  "generation": generation,
  "training": training,
  "perceiver": perceiver,
  "vit3d": vit3d,
}


def main():
  """Answers names of calls with their times."""
  parser = argparse.ArgumentParser()
  parser.add_argument("case", choices=CASES)
  parser.add_argument("--rows", type=int)
  parser.add_argument("--length", type=int, help="tokens of a row")
  parser.add_argument("--images", type=int, help="of a row")
  parser.add_argument("--places", type=int, nargs="*", help="tokens that stand for the images")
  parser.add_argument("--new", type=int, help="tokens to generate")
  flags = parser.parse_args()
  torch.set_num_threads(os.cpu_count())
  model, calls = CASES[flags.case](flags)
  facts = {
    "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    "parameters": sum(p.numel() for p in model.parameters()),
    "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
  }
  print(json.dumps(facts), flush=True)
  for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    calls[line.strip()]()
    times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(json.dumps(times), flush=True)


if __name__ == "__main__":
  main()
