r"""Prefix VQA: one CLIP vector → a mapper's 8 tokens within the text → GPT-2, BioMedLM or BioGPT.

python -m medflax.main --config=configs/prefix_vqa.py:lm=gpt2xl,peft=lora
python -m medflax.main --config=configs/prefix_vqa.py:lm=gpt2xl,peft=lora,variant=full,data=folder \
  --config.data.root=DIR --config.init=DIR/weights.safetensors --config.tokenizer.path=DIR/tokenizer

van Sonsbeek et al. 2023, "Open-Ended Medical Visual Question Answering Through Prefix Tuning of
Language Models" (MICCAI 2023, arXiv 2303.05977), github.com/tjvsonsbeek/open-ended-medical-vqa.
`lm` is `gpt2xl`, `biomedlm` or `biogpt`; `peft` is `frozen`, `unfrozen`, `lora`, `prefix`, `prompt`
or `p_tuning`; `mapper` is the paper's (`paper`), that of its code (`code`) or `transformer`;
`preset` is `paper`, or `code` for its learning rate. `variant=adapt` is `tiny`, but freezes what
`full` does: for the weights of another run, `--config.init=WORKDIR`.

Published, as comparisons in later work have it: SLAKE 84.30 % open, 82.01 % closed; PathVQA 40.00 %
open, 87.00 % closed. No checkpoint was released.
"""

import math

from ml_collections import ConfigDict

from medflax.config import parse_arg
from medflax.defaults import (
  QUESTIONS,
  base_config,
  clip_tower,
  keep_best,
  phantom_scale,
  published_scale,
)
from medflax.utils import pick

GPT2 = dict(
  type="decoder",
  **dict(norm="layer_norm", norm_eps=1e-5, mlp="plain", activation="gelu_tanh"),
  **dict(qkv_bias=True, out_bias=True, mlp_bias=True, tie_embeddings=True),
  **dict(rope_theta=0.0, learned_positions=1024),
)
FAMILIES = {
  "gpt2xl": GPT2,
  "biomedlm": GPT2 | dict(inverse_depth_scale=True),
  "biogpt": GPT2 | dict(activation="gelu", learned_positions=1026, position_offset=2),
}
SIZES = {
  "gpt2xl": dict(vocab_size=50_257, width=1600, depth=48, heads=25, kv_heads=25, mlp_width=6400),
  "biomedlm": dict(
    vocab_size=28_896, width=2560, depth=32, heads=20, kv_heads=20, mlp_width=10_240
  ),
  "biogpt": dict(vocab_size=42_384, width=1024, depth=24, heads=16, kv_heads=16, mlp_width=4096),
}
TINY = dict(vocab_size=1032, width=64, depth=2, heads=4, kv_heads=4, mlp_width=128)
ENDS = {"gpt2xl": "<|endoftext|>", "biomedlm": "<|endoftext|>", "biogpt": "</s>"}

# For a language model of width e. The code's mapper has a third map, and dropout while it trains.
MAPPERS = {
  "paper": lambda e: dict(type="mlp_mapper", hidden=(4 * e,)),
  "code": lambda e: dict(type="mlp_mapper", hidden=(4 * e, 8 * e)),
  "transformer": lambda e: dict(type="transformer_mapper", num_inputs=4),
}

# What is added to the language model, and what of the whole is trained. c_attn of GPT-2 is query,
# key and value; their adapter has one A for the three, ours one each.
ADAPTED = {"gpt2xl": "query|key|value", "biomedlm": "query|key|value", "biogpt": "query|value"}
PEFT = {
  "frozen": (lambda lm: {}, "connector/.*"),
  "unfrozen": (lambda lm: {}, "(connector|lm)/.*"),
  "lora": (
    lambda lm: dict(
      lm=dict(
        type="lora", target=f"lm/.*/attn/({ADAPTED[lm]})/kernel", rank=8, alpha=32.0, dropout=0.1
      )
    ),
    "connector/.*|.*/lora_[ab]",
  ),
  "prefix": (
    lambda lm: dict(lm=dict(type="prefix", target="lm/.*/attn/key/kernel", length=30)),
    "connector/.*|.*/prefix_(key|value)",
  ),
  "prompt": (
    lambda lm: dict(lm=dict(type="prompt", target="lm/embedding", length=30)),
    "connector/.*|lm/prompt",
  ),
  "p_tuning": (
    lambda lm: dict(lm=dict(type="p_tuning", target="lm/embedding", length=30)),
    "connector/.*|lm/prompt.*",
  ),
}


def get_config(arg: str | None = None) -> ConfigDict:
  options = parse_arg(
    arg,
    **dict(lm="gpt2xl", peft="frozen", mapper="paper", preset="paper"),
    **dict(variant="tiny", data="phantom"),
  )
  config = base_config(f"prefix_vqa_{options.lm}_{options.peft}", options.variant)
  end = pick(ENDS, options.lm, "lm")
  config.tokenizer.update(dict(add=(end,), pad=end))
  config.prompt.update(
    dict(question="question: {question} context:{media}answer ", answer="{answer}"),
    **dict(end=end, bos=False),
  )
  config.data.media_tokens = 8
  config.model.fusion = dict(type="inline")
  adapters, trainable = pick(PEFT, options.peft, "peft")
  config.peft = adapters(options.lm)
  size = pick(VARIANTS, options.variant, "variant")(config, options.lm, trainable)
  config.model.lm = FAMILIES[options.lm] | size
  if options.lm == "biogpt":
    config.model.lm.embed_scale = math.sqrt(size["width"])
  config.model.connector = pick(MAPPERS, options.mapper, "mapper")(size["width"]) | dict(
    num_latents=8, out_width=size["width"]
  )
  pick(QUESTIONS, options.data, "data")(config)
  pick(PRESETS, options.preset, "preset")(config)
  if options.variant == "full":
    keep_best(config, every=EPOCH, patience=3)
  return config


def full(config: ConfigDict, lm: str, trainable: str) -> dict[str, int]:
  """CLIP ViT-B/32, which stays frozen, before a published language model."""
  config.data.update(dict(image_size=(224, 224), max_tokens=64, max_media=dict(image=1, volume=0)))
  # CLIP's embedding, not normalised.
  size = dict(width=768, depth=12, heads=12, mlp_width=3072, projection=512)
  clip_tower(config, (32, 32), **size, output="class")
  config.trainable = trainable
  # The paper's learning rate and warm-up, with its code's schedule, batch and 30 epochs; the paper
  # ends sooner, once the loss of the validation split has not been lower three times.
  published_scale(config, lr=5e-3, schedule="linear", warmup_steps=600, clip_norm=0.0)
  config.train.update(dict(batch_size=32, num_steps=30 * EPOCH))
  return SIZES[lm]


def tiny(config: ConfigDict, lm: str, trainable: str) -> dict[str, int]:
  """All parts at the size of phantoms; as there is nothing to freeze, all of it is trained."""
  phantom_scale(config)
  size = dict(width=64, depth=2, heads=4, mlp_width=128, projection=64)
  clip_tower(config, (8, 8), **size, output="class")
  return TINY


def adapt(config: ConfigDict, lm: str, trainable: str) -> dict[str, int]:
  """The tiny model, of which the same is trained as of the published ones."""
  size = tiny(config, lm, trainable)
  config.trainable = trainable
  return size


def code(config: ConfigDict) -> None:
  """The code's learning rate."""
  config.optimizer.lr = 1e-4


EPOCH = 154  # steps, of SLAKE's 4,919 English questions
VARIANTS = {"tiny": tiny, "adapt": adapt, "full": full}
PRESETS = {"paper": lambda config: None, "code": code}
