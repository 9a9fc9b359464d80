r"""Flamingo-style models: ViT → Perceiver resampler → gated cross-attention → decoder.

python -m medflax.main --config=configs/flamingo_med.py
python -m medflax.main --config=configs/flamingo_med.py:variant=small,data=folder \
  --config.data.root=DIR

`tiny` learns to use support examples in minutes on two CPU cores; `small` is for a workstation
and one's own images; `3b` and `9b` have the sizes of OpenFlamingo-3B and of Med-Flamingo.
"""

from ml_collections import ConfigDict

from medflax.config import parse_arg
from medflax.utils import pick

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def get_config(arg: str | None = None) -> ConfigDict:
  options = parse_arg(arg, variant="tiny", data="phantom")
  config = ConfigDict()
  config.name = "flamingo_med"
  config.variant = options.variant
  config.seed = 0
  config.tokenizer = dict(path="")  # "": the one in the package; else a Hugging Face folder
  config.prompt = dict(
    instruction="",
    question="Question: {question} Answer:",
    answer=" {answer}",
    end="<|endofchunk|>",
  )
  config.data = dict(
    source=options.data,
    root="",  # of source "folder"
    on_bad_sample="raise",  # or "skip": left out, counted and listed in the report
    image_size=(32, 32),
    volume_size=(8, 32, 32),
    train={},
    max_tokens=256,  # of a packed row
    max_media=dict(image=9, volume=0),  # slots of a packed row; -1: as many as the data need
    media_rule="prev_image",  # or "next_image", "all_prev"
    num_workers=0,
    packing_bins=8,
  )
  config.model = dict(dtype="float32", remat="none")
  config.init = ""  # safetensors file of pretrained weights to start from
  config.trainable = ".*"  # full match of 'path/to/leaf'
  config.peft = {}  # {"a": dict(type="lora", target=regex, rank=8, alpha=32.0)}: medflax/peft.py
  config.train = dict(
    num_steps=1000,
    batch_size=16,
    log_every=20,
    z_loss=0.0,
    max_bad_steps=10,  # stop after so many non-finite steps in a row
    ema=0.0,  # decay of the weights' moving average, which is then evaluated; 0: none
  )
  config.optimizer = dict(
    type="adamw",
    lr=3e-3,
    schedule="cosine",
    warmup_steps=50,
    final_lr_fraction=0.1,
    weight_decay=0.05,
    decay=".*/kernel",  # weights that decay, by full match
    b1=0.9,
    b2=0.98,
    eps=1e-8,
    clip_norm=1.0,  # 0: none
    accumulate=1,  # micro-batches that a batch is cut into
    lr_multipliers=(),  # pairs (regex, factor)
  )
  config.checkpoint = dict(every=200, keep=2, allow_config_change=False)
  config.mesh = dict(data=-1, fsdp=1, tensor=1)  # -1: what is left
  config.evals = {}
  pick(VARIANTS, options.variant, "variant")(config)
  pick(DATA, options.data, "data")(config)
  return config


def _tower(config: ConfigDict, image_patch: tuple, volume_patch: tuple = (), **fields) -> None:
  size = config.data.get_ref
  inputs = dict(image=dict(size=size("image_size"), patch=image_patch, channels=3))
  if volume_patch:
    inputs["volume"] = dict(size=size("volume_size"), patch=volume_patch, channels=1)
  config.model.tower = dict(type="vit", inputs=inputs, **fields)


# Images enter through gates that start at zero; where all is learnt from scratch, the language
# model would long since say the commonest answer before they open.
OPEN_SOONER = ((".*_gate", 10.0),)


def _phantom_tower(config: ConfigDict) -> None:
  """The shipped tower and resampler, which know phantoms; both stay frozen."""
  config.init = "phantom_tower.safetensors"  # made by medflax.tools.pretrain_tower
  config.trainable = "lm/.*"
  _tower(config, (8, 8), (4, 8, 8), width=64, depth=2, heads=4, mlp_width=128, stem=(32, 64))
  config.model.tower.inputs.image.table = (32, 32)  # what it was trained on; others interpolate
  config.model.tower.inputs.volume.table = (8, 32, 32)
  config.model.connector = dict(type="perceiver", num_latents=4, depth=1, heads=4, head_dim=16)


def tiny(config: ConfigDict) -> None:
  """Under a million parameters, for CPUs and tests."""
  _phantom_tower(config)
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
  _phantom_tower(config)
  config.optimizer.lr_multipliers = OPEN_SOONER
  config.model.fusion = dict(type="gated_xattn", xattn_every=2, heads=6, head_dim=32)
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=1024, width=192, depth=6, heads=6, kv_heads=2, mlp_width=512),
    tie_embeddings=True,
  )
  config.optimizer.lr = 1e-3


def _pretrained_scale(config: ConfigDict) -> None:
  """CLIP ViT-L/14 and OpenFlamingo's resampler; trains what OpenFlamingo trains."""
  config.data.image_size, config.data.volume_size = (224, 224), (32, 224, 224)
  config.data.max_tokens, config.data.max_media = 512, dict(image=8, volume=0)
  _tower(
    config,
    (14, 14),  # images alone, as CLIP
    **dict(width=1024, depth=24, heads=16, mlp_width=4096, activation="quick_gelu"),
    **dict(class_token=True, pre_norm=True, final_norm=False, mean=CLIP_MEAN, std=CLIP_STD),
  )
  config.model.connector = dict(type="perceiver", num_latents=64, depth=6, heads=8, head_dim=64)
  config.model.dtype, config.model.remat = "bfloat16", "full"
  config.trainable = "connector/.*|.*/xattn/.*|lm/embedding"
  config.train.batch_size = 32
  config.optimizer.update(
    dict(lr=1e-4, schedule="constant", warmup_steps=1875, weight_decay=0.1, b2=0.999),
  )
  config.optimizer.decay = ".*/xattn/.*"  # OpenFlamingo >= 2.0
  config.mesh = dict(data=1, fsdp=-1, tensor=1)


def three_b(config: ConfigDict) -> None:
  """OpenFlamingo-3B's depth and width, a gated block before every layer."""
  _pretrained_scale(config)
  config.model.fusion = dict(type="gated_xattn", xattn_every=1, heads=8, head_dim=64)
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=50_432, width=2048, depth=24, heads=16, kv_heads=16, mlp_width=8192),
    tie_embeddings=True,
  )


def nine_b(config: ConfigDict) -> None:
  """Med-Flamingo: LLaMA-7B, a gated block before every fourth layer, 32003 tokens."""
  _pretrained_scale(config)
  config.model.fusion = dict(type="gated_xattn", xattn_every=4, heads=8, head_dim=64)
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=32_003, width=4096, depth=32, heads=32, kv_heads=32, mlp_width=11_008),
  )


VARIANTS = {"tiny": tiny, "small": small, "3b": three_b, "9b": nine_b}


def phantom(config: ConfigDict) -> None:
  """Generated images: invented words are bound to findings by the support examples alone."""
  volumes = "volume" in config.model.tower.inputs
  config.data.max_tokens = 128
  config.data.max_media = dict(image=9, volume=1 if volumes else 0)
  config.data.packing_bins = 32
  entry = lambda task, low, high, weight, targets="all": dict(
    task=task, num_shots=(low, high), weight=weight, targets=targets
  )
  config.data.train = dict(
    # Which word comes first is chance: to learn it would teach nothing but to guess.
    binding=entry("binding", 2, 8, 1.0, "repeated"),
    binding_guess=entry("binding", 0, 0, 0.1),  # without support, some invented word
    finding=entry("finding", 0, 8, 1.0),
    modality=entry("modality", 0, 8, 0.15),
  )
  fewshot = dict(type="fewshot_vqa", every=0, split="test", num_episodes=512)
  config.evals = dict(
    perplexity=dict(type="perplexity", every=200, task="binding", split="val", targets="repeated"),
    binding=dict(**fewshot, task="binding", num_shots=(0, 1, 2, 4, 8), max_new_tokens=3),
    modality=dict(**fewshot, task="modality", num_shots=(0,), max_new_tokens=4),
    finding=dict(**fewshot, task="finding", num_shots=(0,), max_new_tokens=6),
  )
  if volumes:
    config.data.train.update(
      finding_3d=entry("finding_3d", 0, 0, 0.4), modality_3d=entry("modality_3d", 0, 0, 0.2)
    )
    for task in ("finding", "modality"):
      config.evals[f"{task}_3d"] = dict(config.evals[task], task=f"{task}_3d")


def folder(config: ConfigDict) -> None:
  """A folder of images with a manifest; see docs/data.md."""
  if config.init:  # a tower that knows phantoms alone is a start, and has to learn the rest
    config.trainable = ".*"
  config.data.train = dict(vqa=dict(task="vqa", num_shots=(0, 4), weight=1.0, targets="all"))
  config.data.max_media = dict.fromkeys(config.model.tower.inputs, -1)
  config.evals = dict(
    perplexity=dict(type="perplexity", every=200, task="vqa", split="val"),
    vqa=dict(
      type="fewshot_vqa",
      every=0,
      task="vqa",
      split="test",
      num_shots=(0, 1, 2, 4),
      num_episodes=512,
      slice_by=("task",),
    ),
  )


DATA = {"phantom": phantom, "folder": folder}
