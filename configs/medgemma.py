r"""MedGemma-4B: SigLIP → 256 pooled tokens of each image inline → Gemma 3.

python -m medflax.main --config=configs/medgemma.py
python -m medflax.main --config=configs/medgemma.py:variant=full,data=folder \
  --config.data.root=DIR --config.init=DIR/weights.safetensors --config.tokenizer.path=DIR/tokenizer

Sellergren et al. 2025, "MedGemma Technical Report" (arXiv 2507.05201),
huggingface.co/google/medgemma-4b-it.

Published: see the report. Others measure between 49.9 and 72.5 % on VQA-RAD, by judge and subset
(MedEvalKit, issue 21).
"""

import math
from typing import Any

from ml_collections import ConfigDict

from medflax.config import parse_arg
from medflax.defaults import QUESTIONS, base_config, phantom_scale, published_scale
from medflax.utils import pick

GEMMA3 = dict(
  type="decoder",
  **dict(norm="zero_rms_norm", residual="sandwich", qk_norm="head", activation="gelu_tanh"),
  **dict(tie_embeddings=True, rope_theta=1e6, rope_local_theta=1e4),
)


def get_config(arg: str | None = None) -> ConfigDict:
  options = parse_arg(arg, variant="tiny", data="phantom")
  config = base_config("medgemma", options.variant)
  # Gemma has them all.
  turn, image = ("<start_of_turn>", "<end_of_turn>"), ("<start_of_image>", "<end_of_image>")
  config.tokenizer.add = (*turn, *image)
  config.prompt.update(
    question="{<start_of_turn>}user\n{media}{question}{<end_of_turn>}\n{<start_of_turn>}model\n",
    media="\n\n{<start_of_image>}{media}{<end_of_image>}\n\n",
    **dict(answer="{answer}", end="<end_of_turn>"),
  )
  config.model.fusion = dict(type="inline", bidirectional=True)
  pick(VARIANTS, options.variant, "variant")(config)
  pick(QUESTIONS, options.data, "data")(config)
  return config


def _tower(config: ConfigDict, patch: tuple, **fields: Any) -> None:
  image = dict(size=config.data.get_ref("image_size"), patch=patch, channels=3)
  siglip = dict(activation="gelu_tanh", norm_eps=1e-6, patch_bias=True)
  config.model.tower = dict(type="vit", inputs=dict(image=image), **siglip, **fields)


def full(config: ConfigDict) -> None:
  """Gemma 3 4B and SigLIP so400m at 896 pixels."""
  config.data.update(dict(image_size=(896, 896), max_tokens=2048, media_tokens=256))
  config.data.max_media = dict(image=4, volume=0)
  _tower(config, (14, 14), width=1152, depth=27, heads=16, mlp_width=4304)
  config.model.connector = dict(type="pooled", num_latents=256, out_width=2560)
  config.model.lm = dict(
    GEMMA3,
    **dict(vocab_size=262_208, width=2560, depth=34, mlp_width=10_240),
    **dict(heads=8, kv_heads=4, head_dim=256, query_scale=256**-0.5),
    **dict(embed_scale=math.sqrt(2560), windows=(1024,) * 5 + (0,)),
    rope_scaling=dict(type="linear", factor=8.0),
  )
  # How it was trained is not published in numbers; these are a usual fine-tuning's.
  config.trainable = "(connector|lm)/.*"
  published_scale(config, lr=1e-5, schedule="cosine", warmup_steps=50)
  config.train.batch_size = 32


def tiny(config: ConfigDict) -> None:
  """All parts at the size of phantoms."""
  phantom_scale(config)
  config.data.media_tokens = 4
  _tower(config, (8, 8), width=64, depth=2, heads=4, mlp_width=128)
  config.model.connector = dict(type="pooled", num_latents=4, out_width=64)
  config.model.lm = dict(
    GEMMA3,
    **dict(vocab_size=1032, width=64, depth=4, heads=4, kv_heads=2, mlp_width=128),
    **dict(embed_scale=8.0, windows=(16, 0)),
  )


VARIANTS = {"tiny": tiny, "full": full}
