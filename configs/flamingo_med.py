r"""Flamingo-style models: ViT → Perceiver resampler → gated cross-attention → decoder.

python -m medflax.main --config=configs/flamingo_med.py
python -m medflax.main --config=configs/flamingo_med.py:variant=small,data=folder \
  --config.data.root=DIR

`tiny` learns to use support examples in minutes on two CPU cores; `small` is for a workstation
and one's own images; `3b` and `4b` are OpenFlamingo's (Awadalla et al. 2023, arXiv 2308.01390),
`9b` is Med-Flamingo (Moor et al. 2023, arXiv 2307.15189). `lm=gemma3_270m` is `small` around a
frozen Gemma 3 270M:

python -m medflax.tools.import_weights gguf gemma3.gguf --xattn-every 3 --to DIR
python -m medflax.main --config=configs/flamingo_med.py:lm=gemma3_270m,data=folder \
  --config.data.root=DATA --config.tokenizer.path=DIR/tokenizer \
  --config.init=phantom_tower.safetensors,DIR/weights.safetensors

`stage=pretrain` is Med-Flamingo's continued pre-training on interleaved textbooks and on figures
with captions, which `tools.prepare_data` puts side by side as `textbooks` and `pmc_oa_beta`:

python -m medflax.main --config=configs/flamingo_med.py:variant=9b,stage=pretrain,data=prepared \
  --config.data.root=DIR --config.init=DIR/weights.safetensors --config.tokenizer.path=DIR/tokenizer

Published, with four examples, CIDEr on COCO / accuracy on VQAv2 (OpenFlamingo's README): 3B
77.3 / 45.8, 4B 81.8 / 49.0. Med-Flamingo with six (its paper), clinical score / BERTScore / exact
match: VQA-RAD 5.61 / .650 / .200, PathVQA 1.81 / .678 / .303; Visual USMLE, with four,
4.33 / .431 / 0.
"""

import math

from ml_collections import ConfigDict

from medflax.config import parse_arg
from medflax.defaults import (
  base_config,
  books_and_pairs,
  clip_tower,
  folder,
  phantom_fewshot,
  phantom_pages,
  phantom_tower,
  prepared,
)
from medflax.utils import pick


def get_config(arg: str | None = None) -> ConfigDict:
  options = parse_arg(arg, variant="tiny", stage="fewshot", data="phantom", lm="")
  config = base_config("flamingo_med", options.lm or options.variant)
  if options.lm:
    pick(PRETRAINED, options.lm, "lm")(config)
  else:
    pick(VARIANTS, options.variant, "variant")(config)
  pick(pick(STAGES, options.stage, "stage"), options.data, "data")(config)
  return config


# Images enter through gates that start at zero; where all is learnt from scratch, the language
# model would long since say the commonest answer before they open.
OPEN_SOONER = ((".*_gate", 10.0),)


def tiny(config: ConfigDict) -> None:
  """Under a million parameters, for CPUs and tests."""
  phantom_tower(config)
  config.trainable = "lm/.*"
  config.optimizer.lr_multipliers = OPEN_SOONER
  config.model.fusion = dict(type="gated_xattn", xattn_every=1, heads=4, head_dim=16, mlp_ratio=1)
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=1024, width=64, depth=3, heads=4, kv_heads=4, mlp_width=128),
    # Matching by content needs room: wide heads, few of whose dimensions rotate fast.
    **dict(head_dim=32, rope_theta=1e7),
  )


def small(config: ConfigDict) -> None:
  """Some four million parameters, larger images and volumes: for one's own data."""
  config.data.image_size, config.data.volume_size = (64, 64), (16, 32, 32)
  phantom_tower(config)
  config.trainable = "lm/.*"
  config.optimizer.lr_multipliers = OPEN_SOONER
  config.model.fusion = dict(type="gated_xattn", xattn_every=2, heads=6, head_dim=32)
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=1024, width=192, depth=6, heads=6, kv_heads=2, mlp_width=512),
    tie_embeddings=True,
  )
  config.optimizer.lr = 1e-3


def _pretrained_scale(config: ConfigDict) -> None:
  """CLIP ViT-L/14 and OpenFlamingo's resampler; prompts and trains as version 2 does.

  How many samples its batches have and how many there are, is not in its code.
  """
  config.data.image_size, config.data.volume_size = (224, 224), (32, 224, 224)
  config.data.max_tokens, config.data.max_media = 512, dict(image=8, volume=0)
  size = dict(width=1024, depth=24, heads=16, mlp_width=4096)
  clip_tower(config, (14, 14), **size, final_norm=False)
  config.model.connector = dict(type="perceiver", num_latents=64, depth=6, heads=8, head_dim=64)
  config.model.dtype, config.model.remat = "bfloat16", "full"
  config.trainable = "connector/.*|.*/xattn/.*|lm/embedding"
  config.train.batch_size = 32
  config.optimizer.update(
    dict(lr=1e-4, schedule="constant", warmup_steps=1875, weight_decay=0.1, b2=0.999),
  )
  config.optimizer.decay = ".*/xattn/.*"
  config.prompt.update(dict(question="Question:{question} Short answer:", answer="{answer}"))
  config.mesh.update(data=1, fsdp=-1)
  config.train.frozen_dtype = "bfloat16"


def three_b(config: ConfigDict) -> None:
  """OpenFlamingo-3B: MPT-1B (mosaicml/mpt-1b-redpajama-200b), a gated block before every layer."""
  _pretrained_scale(config)
  config.model.fusion = dict(type="gated_xattn", xattn_every=1, heads=8, head_dim=64)
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=50_280, width=2048, depth=24, heads=16, kv_heads=16, mlp_width=8192),
    **dict(norm="layer_norm_no_bias", norm_eps=1e-5, mlp="plain", activation="gelu"),
    **dict(qk_norm="all", rope_theta=0.0, alibi_bias_max=8.0, tie_embeddings=True),
  )


def four_b(config: ConfigDict) -> None:
  """OpenFlamingo-4B: RedPajama-INCITE-3B (GPT-NeoX), a gated block before every second layer."""
  _pretrained_scale(config)
  config.model.fusion = dict(type="gated_xattn", xattn_every=2, heads=8, head_dim=64)
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=50_280, width=2560, depth=32, heads=32, kv_heads=32, mlp_width=10_240),
    **dict(norm="layer_norm", norm_eps=1e-5, mlp="plain", activation="gelu"),
    **dict(qkv_bias=True, out_bias=True, mlp_bias=True),  # rotary in all channels, not parallel
  )


def nine_b(config: ConfigDict) -> None:
  """Med-Flamingo: LLaMA-7B, a gated block before every fourth layer, 32003 tokens."""
  _pretrained_scale(config)
  config.prompt.update(
    instruction="You are a helpful medical assistant. You are being provided with images, a "
    "question about the image and an answer. Follow the examples and answer the last question. ",
    **dict(question="Question: {question} Answer:", answer=" {answer}."),
  )
  config.model.fusion = dict(type="gated_xattn", xattn_every=4, heads=8, head_dim=64)
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=32_003, width=4096, depth=32, heads=32, kv_heads=32, mlp_width=11_008),
  )
  # Published: 8 devices, accumulation 50, 2,700 updates, both kinds of data alike. The rest, and so
  # the learning rate, is OpenFlamingo's, as is a loss of all tokens; it takes a mean of each kind.
  config.train.update(dict(batch_size=400, num_steps=2700))
  config.optimizer.update(dict(accumulate=50, decay=".*/xattn/.*kernel"))


def gemma3_270m(config: ConfigDict) -> None:
  """The tower and the resampler of `small`; the resampler and the gated blocks are trained."""
  small(config)
  config.trainable = "connector/.*|.*/xattn/.*"
  config.tokenizer.add = ("<start_of_image>", "<end_of_turn>")  # Gemma has them
  config.prompt.end, config.data.media_mark = "<end_of_turn>", "<start_of_image>"
  config.model.fusion = dict(type="gated_xattn", xattn_every=3, heads=8, head_dim=64)
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=262_144, width=640, depth=18, heads=4, kv_heads=1, head_dim=256),
    **dict(mlp_width=2048, activation="gelu_tanh", norm="zero_rms_norm", residual="sandwich"),
    **dict(qk_norm="head", query_scale=256**-0.5, embed_scale=math.sqrt(640), tie_embeddings=True),
    **dict(rope_theta=1e6, rope_local_theta=1e4, windows=(512,) * 5 + (0,)),
  )


VARIANTS = {"tiny": tiny, "small": small, "3b": three_b, "4b": four_b, "9b": nine_b}
PRETRAINED = {"gemma3_270m": gemma3_270m}
STAGES = {
  "fewshot": {"phantom": phantom_fewshot, "folder": folder, "prepared": prepared},
  "pretrain": {"phantom": phantom_pages, "prepared": books_and_pairs},
}
