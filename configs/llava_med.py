r"""LLaVA-Med v1.5: CLIP ViT-L/14 at 336 pixels → MLP → 576 tokens of an image inline → Mistral-7B.

python -m medflax.main --config=configs/llava_med.py
python -m medflax.main --config=configs/llava_med.py:variant=full,data=folder \
  --config.data.root=DIR --config.init=DIR/weights.safetensors --config.tokenizer.path=DIR/tokenizer

Li et al. 2023, "LLaVA-Med: Training a Large Language-and-Vision Assistant for Biomedicine in One
Day" (arXiv 2306.00890), github.com/microsoft/LLaVA-Med,
huggingface.co/microsoft/llava-med-v1.5-mistral-7b.

Published: see the paper; with the released weights others measure 45 to 64 % on SLAKE's closed
questions (reported: about 85; its issue 28) and 53 % on VQA-RAD's (84; MedEvalKit, issue 13). On
RadFM's benchmark (Nature Communications 2025, as a citing work has it): VQA BLEU 25.19, reports
UMLS precision 6.86.
"""

from ml_collections import ConfigDict

from medflax.config import parse_arg
from medflax.defaults import QUESTIONS, base_config, clip_tower, phantom_scale, published_scale
from medflax.utils import pick


def get_config(arg: str | None = None) -> ConfigDict:
  options = parse_arg(arg, variant="tiny", data="phantom")
  config = base_config("llava_med", options.variant)
  config.tokenizer.update(dict(add=("<unk>", "</s>"), pad="<unk>"))  # Mistral has them
  config.prompt.update(dict(question="[INST] {media}\n{question} [/INST]", end="</s>"))
  config.model.fusion = dict(type="inline")
  pick(VARIANTS, options.variant, "variant")(config)
  pick(QUESTIONS, options.data, "data")(config)
  return config


def full(config: ConfigDict) -> None:
  """The published model, instruction tuning (stage 2): all but the tower is trained."""
  config.data.update(dict(image_size=(336, 336), max_tokens=2048, media_tokens=576))
  config.data.max_media = dict(image=1, volume=0)
  # CLIP up to its last layer but one: the last is left out, as it is not used.
  size = dict(width=1024, depth=23, heads=16, mlp_width=4096)
  clip_tower(config, (14, 14), **size, final_norm=False)
  config.model.connector = dict(type="mlp", hidden=4096, out_width=4096)
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=32_000, width=4096, depth=32, heads=32, kv_heads=8, mlp_width=14_336),
    **dict(rope_theta=1e6, norm_eps=1e-5),
  )
  config.trainable = "(connector|lm)/.*"
  # Version 1's (its README): three epochs of 60,000 conversations, accumulation 8; version 1.5's
  # are not published. Stage 1 trains the connector alone: lr 2e-3, one epoch of 600,000 captions.
  published_scale(config, lr=2e-5, schedule="cosine", warmup_steps=42)  # 3 % of the steps
  config.train.update(dict(batch_size=128, num_steps=1406))
  config.optimizer.accumulate = 8


def tiny(config: ConfigDict) -> None:
  """All parts at the size of phantoms; all of it is trained."""
  phantom_scale(config)
  config.data.media_tokens = 16
  size = dict(width=64, depth=2, heads=4, mlp_width=128)
  clip_tower(config, (8, 8), **size, final_norm=False)
  config.model.connector = dict(type="mlp", hidden=64, out_width=64)
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=1032, width=64, depth=2, heads=4, kv_heads=2, mlp_width=128),
    **dict(rope_theta=1e6, norm_eps=1e-5),
  )


VARIANTS = {"tiny": tiny, "full": full}
