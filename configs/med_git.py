r"""Med-GIT: an image's tokens before its caption in one stack of layers.

python -m medflax.main --config=configs/med_git.py
python -m medflax.main --config=configs/med_git.py:variant=full,data=prepared \
  --config.data.root=ROCO

GIT (Wang et al. 2022, arXiv 2205.14100) fine-tuned on ROCO: Visual Med-Alpaca's expert for
radiology (github.com/cambridgeltl/visual-med-alpaca, code/med-git). `tiny` learns to write
phantoms' reports. Image tokens see each other, text sees them and itself so far, in post-norm
layers with learned positions. Unlike GIT's, image tokens take positions, there is no norm of the
embeddings, and the end of a caption is learned but not the padding behind it, which the original's
loss counts. A checkpoint of GIT's own form is asked by `medflax.tools.ask` as it is.

Published: nothing.
"""

from typing import Any

from ml_collections import ConfigDict

from medflax.config import parse_arg
from medflax.defaults import (
  QUESTIONS,
  base_config,
  clip_tower,
  phantom_scale,
  phantom_tower,
  published_scale,
)
from medflax.utils import pick

BERT = dict(
  type="decoder",
  **dict(norm="layer_norm", norm_eps=1e-12, residual="post", mlp="plain", activation="gelu"),
  **dict(qkv_bias=True, out_bias=True, mlp_bias=True, head_bias=True, final_norm=False),
  rope_theta=0.0,
)


def get_config(arg: str | None = None) -> ConfigDict:
  options = parse_arg(arg, variant="tiny", data="reports")
  config = base_config("med_git", options.variant)
  config.prompt.update(dict(question="{media}", answer="{answer}", end="<eos>"))
  config.model.fusion = dict(type="inline", bidirectional=True)
  pick(VARIANTS, options.variant, "variant")(config)
  pick(DATA, options.data, "data")(config)
  return config


def _bert(config: ConfigDict, **fields: Any) -> None:
  config.model.lm = dict(BERT, **fields)


def full(config: ConfigDict) -> None:
  """GIT-base's sizes: ViT-B/16 and six layers of text."""
  config.data.update(dict(image_size=(224, 224), max_tokens=512, media_tokens=197))
  config.data.max_media = dict(image=1, volume=0)
  clip_tower(config, (16, 16), width=768, depth=12, heads=12, mlp_width=3072, output="tokens")
  config.model.connector = dict(type="mlp", hidden=768, out_width=768)
  config.tokenizer.update(dict(add=("[CLS]", "[SEP]", "[PAD]"), pad="[PAD]"))  # BERT has them
  config.prompt.update(dict(question="{media}{[CLS]}", end="[SEP]"))
  sizes = dict(width=768, depth=6, heads=12, kv_heads=12, mlp_width=3072)
  _bert(config, vocab_size=30_522, learned_positions=1024, **sizes)
  published_scale(config, lr=5e-5, schedule="constant", warmup_steps=0, weight_decay=0.01)
  config.train.update(dict(batch_size=4, num_steps=490_830))  # 30 times 65,444 captions


def tiny(config: ConfigDict) -> None:
  """The shipped tower and its resampler, and a small stack that learns to report."""
  phantom_scale(config)
  phantom_tower(config)
  config.trainable = "(connector|lm)/.*"
  config.data.update(dict(media_tokens=4, max_media=dict(image=4, volume=0)))
  sizes = dict(width=64, depth=4, heads=4, kv_heads=4, mlp_width=256)
  _bert(config, vocab_size=1032, learned_positions=128, **sizes)
  config.train.num_steps = 1000
  config.checkpoint.every = 250


def reports(config: ConfigDict) -> None:
  """Phantoms with their reports, which few write word for word."""
  QUESTIONS["reports"](config)
  config.evals.report.metrics = ("exact_match", "token_f1", "coco_bleu4")


VARIANTS = {"tiny": tiny, "full": full}
DATA = QUESTIONS | {"reports": reports}
