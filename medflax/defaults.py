"""What config files start from: every field with a value, and the data sets that all can run on."""

import functools
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict


def base_config(name: str, variant: str) -> ConfigDict:
  """Every field that `medflax.config` knows; a config file fills in the model and changes the rest.

  Args:
    name: of the system, part of the default workdir's name.
    variant: of its size, told in reports.
  """
  config = ConfigDict()
  config.name = name
  config.variant = variant
  config.seed = 0
  config.tokenizer = dict(
    path="",  # "": the one in the package; else a Hugging Face folder
    add=("<|endofchunk|>", "<image>"),  # special tokens it gets unless it has them
    pad="",  # "": its own, or else <PAD> is added
  )
  config.prompt = dict(  # medflax.data.documents.Prompt
    instruction="",
    question="Question: {question} Answer:",
    answer=" {answer}",
    end="<|endofchunk|>",
    media="{media}",
    bos=True,
  )
  config.data = dict(
    source="phantom",
    root="",  # of source "folder" or "prepared"; a prepared folder may be a URL
    cache="",  # a local folder that prepared folders are copied to from their URLs
    on_bad_sample="raise",  # or "skip": left out, counted and listed in the report
    exclude="",  # a list of samples to leave out, as medflax.tools.check_leakage writes
    image_size=(32, 32),
    volume_size=(8, 32, 32),
    sources={},  # of source "mixture": {"a": dict(source="prepared", root="…")}, tasks are "a/vqa"
    transforms={},  # by kind of media, {"image": {"flip": {}}}: medflax/data/transforms
    train={},  # {"a": dict(task="vqa", num_shots=(0, 4), weight=1.0, targets="all")}
    temperature=1.0,  # of weights left to the data (-1): sizes to the power of 1/temperature
    max_tokens=256,  # of a packed row
    max_media=dict(image=9, volume=0),  # slots of a packed row; -1: as many as the data need
    media_mark="<image>",  # stands for a media item in the text; "": nothing does
    media_tokens=0,  # of a media item inline, between the text's tokens; 0: it is not inline
    answer_tokens=0,  # a shorter answer's end is repeated up to these; 0: it is there once
    loss_words=(),  # pairs (file of terms, one a line; what their tokens count for in the loss)
    media_rule="prev_image",  # or "next_image", "all_prev"
    num_workers=0,
    packing_bins=64,  # rows that are packed together; more waste less
    shards=-1,  # of the documents; -1: one a process, whose number is then that of the whole run
  )
  config.model = dict(
    objective=dict(type="next_token"),
    **dict(tower={}, connector={}, fusion={}, lm={}),
    **dict(dtype="float32", remat="none"),
    attention="auto",  # or "xla", "cudnn", "splash": medflax/models/attention.py
  )
  config.init = ""  # safetensors files of pretrained weights to start from, commas between
  config.trainable = ".*"  # full match of 'path/to/leaf'
  config.peft = {}  # {"a": dict(type="lora", target=regex, rank=8, alpha=32.0)}: medflax/peft.py
  config.train = dict(
    num_steps=1000,
    batch_size=16,
    log_every=20,
    z_loss=0.0,
    max_bad_steps=10,  # stop after so many non-finite steps in a row
    ema=0.0,  # decay of the weights' moving average, which is then evaluated; 0: none
    frozen_dtype="float32",  # of weights that are not trained, also "int8"; the others are float32
    loss_chunk=-1,  # tokens of a row whose logits are in memory at once; 0: all; -1: what fits
    hang_seconds=1800.0,  # a process that is so long behind the others ends the run
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
  config.profile = dict(steps=())  # (first, last): a trace of these is written to the workdir
  config.checkpoint = dict(every=200, keep=2, allow_config_change=False)
  config.best = dict(  # whose weights stay, and are evaluated when training ends
    metric="",  # of an evaluator that runs every so many steps: "perplexity/nll"; "": the last step
    mode="min",  # or "max"
    patience=0,  # training ends when so many values in a row were no better; 0: after all steps
  )
  config.mesh = dict(  # of devices; -1: what is left
    replica=1,  # groups that each hold all weights, one a slice or island of fast links
    data=-1,  # the same within a group
    fsdp=1,  # weights are split, and gathered layer by layer
    sequence=1,  # tokens of a row are split
    tensor=1,  # heads, MLPs and the vocabulary are split
  )
  config.evals = {}
  return config


def phantom_tower(config: ConfigDict) -> None:
  """The shipped tower and resampler, which know phantoms."""
  config.init = "phantom_tower.safetensors"  # made by medflax.tools.pretrain_tower
  size = config.data.get_ref
  # What it was trained on; other sizes interpolate its positions.
  image = dict(size=size("image_size"), patch=(8, 8), channels=3, table=(32, 32))
  volume = dict(size=size("volume_size"), patch=(4, 8, 8), channels=1, table=(8, 32, 32))
  config.model.tower = dict(
    type="vit",
    inputs=dict(image=image, volume=volume),
    **dict(width=64, depth=2, heads=4, mlp_width=128, stem=(32, 64)),
  )
  config.model.connector = dict(type="perceiver", num_latents=4, depth=1, heads=4, head_dim=16)


def clip_tower(config: ConfigDict, patch: tuple, **fields: Any) -> None:
  """A ViT in CLIP's form (Radford et al. 2021) for images; `fields` are its sizes and output."""
  image = dict(size=config.data.get_ref("image_size"), patch=patch, channels=3)
  config.model.tower = dict(
    type="vit",
    inputs=dict(image=image),
    **dict(class_token=True, pre_norm=True, activation="quick_gelu"),
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    **fields,
  )


def published_scale(config: ConfigDict, **optimizer: Any) -> None:
  """Bfloat16 on sharded weights; the defaults of Hugging Face's Trainer, but for `optimizer`."""
  config.model.dtype, config.model.remat = "bfloat16", "full"
  config.mesh.update(data=1, fsdp=-1)
  config.train.frozen_dtype = "bfloat16"
  config.optimizer.update(dict(weight_decay=0.0, b2=0.999, final_lr_fraction=0.0) | optimizer)


def phantom_scale(config: ConfigDict) -> None:
  """About a minute on two CPU cores, everything learnt from scratch."""
  config.data.max_tokens = 128
  config.data.max_media = dict(image=4, volume=0)
  config.data.packing_bins = 32
  config.train.num_steps = 200
  config.checkpoint.every = 100


def _entry(task: str, low: int, high: int, weight: float, targets: str = "all") -> dict:
  return dict(task=task, num_shots=(low, high), weight=weight, targets=targets)


def phantom_fewshot(config: ConfigDict) -> None:
  """Generated images: invented words are bound to findings by the support examples alone."""
  config.data.source = "phantom"
  volumes = "volume" in config.model.tower.inputs
  config.data.max_tokens = 128
  config.data.max_media = dict(image=9, volume=1 if volumes else 0)
  config.data.packing_bins = 32
  config.data.train = dict(
    # Which word comes first is chance: to learn it would teach nothing but to guess.
    binding=_entry("binding", 2, 8, 1.0, "repeated"),
    binding_guess=_entry("binding", 0, 0, 0.1),  # without support, some invented word
    finding=_entry("finding", 0, 8, 1.0),
    modality=_entry("modality", 0, 8, 0.15),
  )
  fewshot = dict(type="fewshot_vqa", every=0, split="test", num_episodes=512)
  config.evals = dict(
    perplexity=dict(type="perplexity", every=200, task="binding", split="val", targets="repeated"),
    binding=dict(
      **fewshot, task="binding", num_shots=(0, 1, 2, 4, 8), decoding=dict(max_new_tokens=3)
    ),
    modality=dict(**fewshot, task="modality", num_shots=(0,), decoding=dict(max_new_tokens=4)),
    finding=dict(**fewshot, task="finding", num_shots=(0,)),
  )
  if volumes:
    config.data.train.update(
      finding_3d=_entry("finding_3d", 0, 0, 0.4), modality_3d=_entry("modality_3d", 0, 0, 0.2)
    )
    for task in ("finding", "modality"):
      config.evals[f"{task}_3d"] = dict(config.evals[task], task=f"{task}_3d")


def phantom_pages(config: ConfigDict) -> None:
  """Generated images with reports, alone and several in turn: pairs and interleaved pages."""
  phantom_fewshot(config)
  kinds = ("report", "report_3d")[: 1 + bool(config.data.max_media.volume)]
  pages = dict(pages=_entry("report", 1, 4, 1.0))
  config.data.train = pages | {f"{task}_pairs": _entry(task, 0, 0, 0.5) for task in kinds}
  asked = dict(type="fewshot_vqa", every=0, split="test", decoding=dict(max_new_tokens=24))
  config.evals = dict(
    perplexity=dict(type="perplexity", every=200, task="report", split="val"),
    report=dict(**asked, task="report", num_shots=(0, 4), num_episodes=128),
  )


def books_and_pairs(config: ConfigDict) -> None:
  """Textbooks and figures with captions, prepared under one root: Med-Flamingo's MTB and PMC-OA."""
  root = config.data.get_ref("root")
  config.data.source = "mixture"
  config.data.sources = dict(
    textbooks=dict(source="prepared", root=root + "/textbooks"),
    pmc_oa_beta=dict(source="prepared", root=root + "/pmc_oa_beta"),
  )
  config.data.train = dict(
    pages=_entry("textbooks/page", 0, 0, 1.0), pairs=_entry("pmc_oa_beta/caption", 0, 0, 1.0)
  )
  config.evals = dict(
    perplexity=dict(
      type="perplexity", every=100, task="pmc_oa_beta/caption", split="val", num_shots=0
    )
  )


def phantom_questions(config: ConfigDict, tasks: Sequence[str] = ("finding", "modality")) -> None:
  """Generated images with one question each, for systems that read no support examples.

  Of volumes the last task alone is asked.
  """
  config.data.source = "phantom"
  weights = {task: 0.5 if i else 1.0 for i, task in enumerate(tasks)}
  if config.data.max_media.volume:
    weights[f"{tasks[-1]}_3d"] = 0.5
  config.data.train = {task: _entry(task, 0, 0, weight) for task, weight in weights.items()}
  perplexity = dict(type="perplexity", every=0, task=tasks[0], split="val", num_shots=0)
  longest = 24 if "report" in tasks else 6
  asked = dict(
    type="fewshot_vqa", every=0, split="test", num_shots=(0,), decoding=dict(max_new_tokens=longest)
  )
  config.evals = dict(
    perplexity=dict(**perplexity, num_documents=128),
    **{task: dict(**asked, task=task, num_episodes=128) for task in weights},
  )


def folder(config: ConfigDict, shots: Sequence[int] = (0, 1, 2, 4)) -> None:
  """A folder of images with a manifest, asked with so many support examples; see docs/data.md."""
  config.data.source = "folder"
  if config.init:  # a tower that knows phantoms alone is a start, and has to learn the rest
    config.trainable = f"(tower|connector)/.*|{config.trainable}"
  config.data.train = dict(vqa=_entry("vqa", 0, max(shots), 1.0))
  config.data.max_media = dict.fromkeys(config.model.tower.get("inputs", {}), -1)
  config.evals = dict(
    perplexity=dict(
      type="perplexity", every=200, task="vqa", split="val", num_shots=min(4, max(shots))
    ),
    vqa=dict(
      type="fewshot_vqa",
      every=0,
      task="vqa",
      split="test",
      num_shots=tuple(shots),
      num_episodes=512,
      slice_by=("task",),
    ),
  )


def prepared(config: ConfigDict, shots: Sequence[int] = (0, 1, 2, 4)) -> None:
  """A folder that `medflax.tools.prepare_data` has made; not all have a validation split."""
  folder(config, shots)
  config.data.source = "prepared"
  del config.evals.perplexity


def keep_best(config: ConfigDict, *, every: int, patience: int = 0) -> None:
  """Keeps the step of the lowest perplexity of the validation split, measured every so many steps.

  Training ends when it was not the lowest `patience` times in a row.
  """
  task = next(entry.task for entry in config.data.train.values())
  perplexity = dict(type="perplexity", task=task, split="val", num_shots=0)
  config.evals.perplexity = dict(config.evals.get("perplexity", perplexity), every=every)
  config.best.update(dict(metric="perplexity/nll", patience=patience))


# The data of systems that read no support examples.
QUESTIONS = {
  "phantom": phantom_questions,
  "reports": functools.partial(phantom_questions, tasks=("report",)),
  "folder": functools.partial(folder, shots=(0,)),
  "prepared": functools.partial(prepared, shots=(0,)),
}
