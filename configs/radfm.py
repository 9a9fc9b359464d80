r"""RadFM: 3D ViT → Perceiver resampler → 32 tokens of each image or volume inline → LLaMA-13B.

python -m medflax.main --config=configs/radfm.py
python -m medflax.main --config=configs/radfm.py:variant=full,data=folder \
  --config.data.root=DIR --config.init=DIR/weights.safetensors --config.tokenizer.path=DIR/tokenizer

Wu et al. 2023, "Towards Generalist Foundation Model for Radiology by Leveraging Web-scale 2D&3D
Medical Data" (arXiv 2308.02463; Nature Communications 2025), github.com/chaoyi-wu/RadFM.

The stages follow one another, each from the run before, `--config.init=WORKDIR`: `pretrain_frozen`,
`pretrain` and `tune`. The paper's threefold weight of medical terms, which is not in the loss that
its code returns, needs a file of them: `--config.data.loss_words="(('umls.txt', 3.0),)"`.

Published, Nature Communications 2025 (as a citing work has its table): VQA BLEU 30.88, UMLS
precision 22.89; reports UMLS precision 18.97, recall 9.32; rationale BLEU 41.89, UMLS precision
42.95; radiologists give 2.17 of 5 (GPT-4V 1.99, Med-Flamingo 1.21).
"""

from typing import Any

from ml_collections import ConfigDict

from medflax.config import parse_arg
from medflax.defaults import QUESTIONS, base_config, phantom_scale, published_scale
from medflax.utils import pick


def get_config(arg: str | None = None) -> ConfigDict:
  options = parse_arg(arg, stage="tune", variant="tiny", data="phantom")
  config = base_config("radfm", options.variant)
  # The first two are ids 32000 and 32001 behind LLaMA's, which has the others.
  config.tokenizer.add = ("<image>", "</image>", "<unk>", "</s>")
  config.tokenizer.pad = "<unk>"
  # The paper puts the media before or behind the question, its code before the last character.
  config.prompt.update(
    dict(question="{media}{question}", media="{<image>}{media}{</image>}", end="</s>")
  )
  config.model.fusion = dict(type="inline")
  pick(VARIANTS, options.variant, "variant")(config)
  pick(QUESTIONS, options.data, "data")(config)
  if options.variant == "full":
    pick(STAGES, options.stage, "stage")(config)
  return config


def pretrain_frozen(config: ConfigDict) -> None:
  """The first of four epochs of MedMD's 16 M samples: the language model stays as it is."""
  config.trainable = "(tower|connector)/.*|lm/extra_embedding"
  config.train.num_steps = 125_000


def pretrain(config: ConfigDict) -> None:
  """The three epochs after it."""
  config.train.num_steps = 375_000


def _tower(config: ConfigDict, patch: tuple, table: tuple, **fields: Any) -> None:
  """Volumes, and images as volumes of one slice four times."""
  size, common = config.data.get_ref, dict(patch=patch, table=table, channels=3)
  config.model.tower = dict(
    type="vit",
    inputs=dict(
      image=dict(size=size("image_size"), depth=4, **common),
      volume=dict(size=size("volume_size"), **common),
    ),
    **dict(positions="axes", patch_norms=True, patch_bias=True, qkv_bias=False, final_norm=False),
    **dict(mean=(0.0,), std=(1.0,)),
    **fields,
  )


def full(config: ConfigDict) -> None:
  """The published model, instruction tuning on RadMD (stage 2): all of it is trained."""
  config.data.image_size, config.data.volume_size = (512, 512), (64, 256, 256)
  # A row is what one device had: four images or a volume, of as many samples.
  config.data.update(dict(max_tokens=2048, max_media=dict(image=4, volume=1), media_tokens=32))
  _tower(
    config,
    (4, 32, 32),
    (512, 512, 512),
    **dict(width=768, depth=12, heads=8, head_dim=64, mlp_width=2048),
  )
  config.model.connector = dict(
    type="perceiver", num_latents=32, depth=6, heads=8, head_dim=64, out_width=5120
  )
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=32_000, extra_tokens=2, width=5120, depth=40),
    **dict(heads=40, kv_heads=40, mlp_width=13_824),
  )
  # Published: AdamW, 32 devices, accumulation 4, 4 epochs of RadMD's 3 M pairs. Learning rate,
  # schedule and warm-up are not; these are usual.
  published_scale(config, lr=2e-5, schedule="cosine", warmup_steps=700, accumulate=4)
  config.train.update(dict(batch_size=128, num_steps=23_400))


def tiny(config: ConfigDict) -> None:
  """All parts at the size of phantoms."""
  phantom_scale(config)
  config.data.update(dict(max_media=dict(image=4, volume=1), media_tokens=4))
  config.tokenizer.update(dict(add=("<image>", "</image>"), pad=""))  # the shipped one has the rest
  config.prompt.end = "<eos>"
  _tower(
    config,
    (4, 8, 8),
    (32, 32, 32),
    **dict(width=48, depth=2, heads=4, head_dim=8, mlp_width=96),
  )
  config.model.connector = dict(
    type="perceiver", num_latents=4, depth=1, heads=4, head_dim=16, out_width=64
  )
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=1024, extra_tokens=2, width=64, depth=2),
    **dict(heads=4, kv_heads=4, mlp_width=128),
  )


VARIANTS = {"tiny": tiny, "full": full}
STAGES = {"pretrain_frozen": pretrain_frozen, "pretrain": pretrain, "tune": lambda config: None}
