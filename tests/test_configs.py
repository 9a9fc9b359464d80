"""Every shipped config builds, and published models have the sizes that were published."""

import math
import pathlib
import re

import pytest

from medflax import config as config_lib
from medflax import main
from medflax.build import build

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
DATA = ("phantom", "folder", "prepared")
MEDVINT = ("medvint.py:head=td", "medvint.py:head=te")
PREFIX_LMS = [f"prefix_vqa.py:lm={lm}" for lm in ("gpt2xl", "biomedlm", "biogpt")]
PEFT = ("unfrozen", "lora", "prefix", "prompt", "p_tuning")
PREFIX_PEFT = [f"prefix_vqa.py:peft={p}" for p in PEFT]
OTHERS = ("radfm.py", "visual_med_alpaca.py", "medgemma.py", "llava_med.py")
# The README's command trains the one left out.
FILES = sorted(path.name for path in CONFIGS.glob("*.py") if path.name != "flamingo_med.py")


def arg(spec, **options):
  """A spec with further options: `radfm.py` → `radfm.py:variant=full`."""
  given = ",".join(f"{name}={value}" for name, value in options.items())
  return f"{spec},{given}" if ":" in spec else f"{spec}:{given}"


def parts(spec, overrides=()):
  config = config_lib.load_config(f"{CONFIGS}/{spec}", overrides)
  config_lib.validate(config)
  return build(config)


def sizes(parts):
  """Number of weights by 'path/to/leaf', trainable and frozen; nothing is allocated."""
  leaves = parts.state.trainable | parts.state.frozen
  return {path: math.prod(leaf.shape) for path, leaf in leaves.items()}


def total(sizes, pattern):
  return sum(n for path, n in sizes.items() if re.fullmatch(pattern, path))


@pytest.mark.parametrize("variant", ["tiny", "small", "3b", "4b", "9b"])
@pytest.mark.parametrize("data", DATA)
def test_every_flamingo_builds(variant, data):
  built = parts(f"flamingo_med.py:variant={variant},data={data}")
  assert built.state.trainable
  from_scratch = variant in ("tiny", "small")
  assert bool(built.state.frozen) == (data == "phantom" or not from_scratch)


@pytest.mark.parametrize("spec", [*OTHERS, *MEDVINT, *PREFIX_LMS, *PREFIX_PEFT])
def test_every_system_builds(spec):
  built = parts(arg(spec, variant="full"))
  assert built.state.trainable
  assert bool(built.state.frozen) == (spec != "radfm.py")
  assert set(parts(arg(spec, variant="tiny")).state.frozen) == {
    path for path in built.state.frozen if path.endswith(("lora_scale", "lora_dropout"))
  }


@pytest.mark.parametrize(
  "spec", [f"{f}.py:{a}" for f in ("deplot", "med_git") for a in ("data=folder", "variant=full")]
)
def test_experts_build(spec):
  assert parts(spec).config.data.max_media.image > 0


@pytest.mark.parametrize("spec", [*OTHERS, *MEDVINT, PREFIX_LMS[0]])
def test_every_system_builds_for_a_folder(spec):
  config = parts(arg(spec, variant="full", data="folder")).config
  assert config.data.train.vqa.num_shots == (0, 0)
  assert config.data.max_media.get("image", 0) == int(spec != "visual_med_alpaca.py")


@pytest.mark.parametrize(
  ("spec", "field", "value"),
  [
    ("flamingo_med.py:stage=pretrain", "data.train.pages.num_shots", (1, 4)),
    (
      "flamingo_med.py:variant=9b,stage=pretrain,data=prepared",
      "data.sources.textbooks.root",
      "DIR/textbooks",
    ),
    ("medvint.py:head=td,prompt=caption,data=reports", "prompt.question", "{media}{<s>}"),
    ("medvint.py:head=te,stage=finetune", "best.metric", "perplexity/nll"),
    ("medvint.py:stage=finetune,variant=full,data=prepared", "train.num_steps", 30_800),
    ("prefix_vqa.py:variant=full,data=prepared", "evals.perplexity.every", 154),
    ("prefix_vqa.py:variant=full,preset=code", "optimizer.lr", 1e-4),
    ("prefix_vqa.py:variant=adapt,peft=lora", "trainable", "connector/.*|.*/lora_[ab]"),
    ("radfm.py:data=reports", "data.train.report_3d.weight", 0.5),
    ("radfm.py:stage=pretrain_frozen,variant=full", "train.num_steps", 125_000),
    ("visual_med_alpaca.py:preset=code", "data.train.finding.targets", "whole"),
  ],
)
def test_stages_and_presets(spec, field, value):
  config = config_lib.load_config(f"{CONFIGS}/{spec}", [("data.root", "DIR")])
  config_lib.validate(config)
  assert config_lib.flatten(config)[field] == value


def test_tiny_is_under_a_million():
  assert sum(sizes(parts("flamingo_med.py:variant=tiny")).values()) < 1_000_000


LLAMA_7B, LORA_7B = 6_738_415_616, 4_194_304
CLIP_L = 303_966_208 - 1024 * 768 - 2 * 1024  # without projection and the norm before it
CLIP_L_336 = 303_507_456
CLIP_L_LAYER = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
RESAMPLER = 63_019_008  # OpenFlamingo's
GPT_NEOX_TOKENS = 50_277 + 3  # and OpenFlamingo's three
ADAPTERS = r"lm/.*/lora_[ab]|lm/.*/prefix_(key|value)|lm/prompt"
LM = rf"(?!{ADAPTERS}|.*/lora_.*|lm/groups/xattn/.*|lm/fused/.*)lm/.*"
XATTN = r"lm/groups/xattn/.*"


def gated_block(width):
  return 2 * width * (512 + 4 * width) + 1024 * 1024 + 4 * width + 2


def linear(inputs, outputs):
  return inputs * outputs + outputs


# By spec: what a pattern's leaves have, all together all of the model. Published counts, or what
# follows from published shapes.
PUBLISHED = {
  "flamingo_med.py:variant=3b": {
    "tower/.*": CLIP_L,
    "connector/.*": RESAMPLER,
    XATTN: 24 * gated_block(2048),
    # MPT-1B's shape makes 1,311,311,872 with a table of 50,368 rows.
    LM: 1_311_311_872 + (GPT_NEOX_TOKENS - 50_368) * 2048,
  },
  "flamingo_med.py:variant=4b": {
    "tower/.*": CLIP_L,
    "connector/.*": RESAMPLER,
    XATTN: 16 * gated_block(2560),
    # RedPajama-INCITE-3B's shape makes 2,775,864,320 with two tables of 50,432 rows.
    LM: 2_775_864_320 + 2 * (GPT_NEOX_TOKENS - 50_432) * 2560,
  },
  "flamingo_med.py:variant=9b": {
    "tower/.*": CLIP_L,
    "connector/.*": RESAMPLER,
    XATTN: 8 * 139_476_994,
    LM: LLAMA_7B + 2 * 3 * 4096,  # three tokens more, in the embedding and in the head
  },
  "flamingo_med.py:lm=gemma3_270m": {
    "tower/.*": 178_560,  # the shipped one
    "connector/.*": 49_920,
    XATTN: 6 * (2 * 640 * (512 + 4 * 640) + 2 * 64 * 512 + 4 * 640 + 2),
    LM: 268_098_176,
  },
  "radfm.py:variant=full": {
    "tower/.*": 66_208_000,
    "connector/(?!out/).*": 37_802_496,
    "connector/out/.*": linear(768, 5120),
    "lm/extra_embedding": 2 * 5120,
    "lm/(?!extra_embedding).*": 13_015_864_320,
  },
  "medvint.py:head=td,variant=full": {
    r"tower/(?!.*/(mean|var)$).*": 8_562_528,  # without the running statistics
    "tower/.*/(mean|var)": 2 * 15_360,
    "connector/(layers|norm)/.*": 126_027_776,
    "connector/queries": 32 * 1024,
    "connector/(hidden|out)/.*": linear(1024, 1024) + linear(1024, 4096),
    LM: LLAMA_7B,
    ADAPTERS: LORA_7B,
  },
  "medvint.py:head=te,variant=full": {
    r"tower/(?!.*/(mean|var)$).*": 38_316_896 - 14_789_632,  # CLIP's ResNet-50 without its pooling
    "tower/.*/(mean|var)": 2 * 26_624,
    "connector/(layers|norm)/.*": 70_927_872,
    "connector/queries": 32 * 768,
    "connector/in/.*": linear(2048, 768),
    LM: LLAMA_7B - 32_000 * 4096,  # without a head
    "lm/fused/in/.*|lm/fused/separator": linear(4096, 768) + 768,
    "lm/fused/blocks/.*": 7_087_872,
    "lm/fused/head/.*": 768 * 32_000,
    ADAPTERS: LORA_7B,
  },
  "prefix_vqa.py:lm=gpt2xl,peft=lora,variant=full": {
    "tower/.*": 87_849_216,
    "connector/.*": linear(512, 6400) + linear(6400, 12_800),  # 85.2 M
    LM: 1_557_611_200,
    # peft has one A for query, key and value: 2,457,600.
    ADAPTERS: 48 * 3 * (1600 * 8 + 8 * 1600),
  },
  "prefix_vqa.py:lm=gpt2xl,mapper=code,variant=full": {
    "tower/.*": 87_849_216,
    "connector/.*": 249_068_800,
    LM: 1_557_611_200,
  },
  "prefix_vqa.py:lm=biomedlm,peft=prefix,variant=full": {
    "tower/.*": 87_849_216,
    "connector/.*": linear(512, 10_240) + linear(10_240, 20_480),  # 215.0 M
    LM: 2_594_247_680,
    ADAPTERS: 30 * 32 * 2 * 2560,
  },
  "prefix_vqa.py:lm=biogpt,peft=prompt,variant=full": {
    "tower/.*": 87_849_216,
    "connector/.*": linear(512, 4096) + linear(4096, 8192),  # 35.7 M
    LM: 346_763_264,
    ADAPTERS: 30 * 1024,
  },
  "visual_med_alpaca.py:variant=full": {LM: LLAMA_7B, ADAPTERS: LORA_7B},
  "deplot.py:variant=full": {".*": 282_285_696},
  "medgemma.py:variant=full": {
    "tower/.*": 416_866_032,
    "connector/.*": 1152 + 1152 * 2560,
    LM: 4_300_079_472 - 416_866_032 - 1152 - 1152 * 2560,
  },
  "llava_med.py:variant=full": {
    "tower/.*": CLIP_L_336 - CLIP_L_LAYER - 2 * 1024,  # without what is not used
    "connector/.*": linear(1024, 4096) + linear(4096, 4096),
    LM: 7_241_732_096,
  },
}


@pytest.mark.parametrize("spec", PUBLISHED)
def test_published_sizes(spec):
  weights = sizes(parts(spec))
  expected = PUBLISHED[spec]
  assert {pattern: total(weights, pattern) for pattern in expected} == expected
  settings = total(weights, ".*/lora_(scale|dropout)")
  assert sum(weights.values()) - settings == sum(expected.values())


def test_med_flamingo_trains_what_its_file_holds():
  """As many float32 as its `model.pt` of 5.24 GB has."""
  built = parts("flamingo_med.py:variant=9b")
  assert sum(math.prod(leaf.shape) for leaf in built.state.trainable.values()) == 1_309_919_248


@pytest.mark.parametrize(
  ("spec", "trained"),
  [
    ("flamingo_med.py:lm=gemma3_270m", r"connector/.*|lm/groups/xattn/.*"),
    ("flamingo_med.py:lm=gemma3_270m,data=folder", r"(tower|connector)/.*|lm/groups/xattn/.*"),
    ("medvint.py:head=td,variant=full", r"(tower|connector)/.*|.*/lora_[ab]"),
    ("medvint.py:head=te,variant=full", r"(tower|connector|lm/fused)/.*|.*/lora_[ab]"),
    ("prefix_vqa.py:peft=frozen,variant=full", "connector/.*"),
    ("prefix_vqa.py:peft=unfrozen,variant=full", "(connector|lm)/.*"),
    ("visual_med_alpaca.py:variant=full", ".*/lora_[ab]"),
    ("llava_med.py:variant=full", "(connector|lm)/.*"),
  ],
)
def test_what_is_trained(spec, trained):
  built = parts(spec)
  assert all(re.fullmatch(trained, path) for path in built.state.trainable)
  assert not any(re.fullmatch(trained, path) for path in built.state.frozen)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*FILES, "medvint.py:head=te", "prefix_vqa.py:peft=lora"])
def test_tiny_trains_resumes_and_evaluates(spec, tmp_path):
  """Two steps, the second after a resume, and every evaluation of its own, of two questions."""
  command = [
    *(f"--config={CONFIGS}/{spec}", f"--workdir={tmp_path / 'run'}"),
    *("--config.checkpoint.every=1", "--config.checkpoint.allow_config_change=true"),
    *("--config.train.batch_size=2", "--config.train.log_every=1"),
  ]
  evals = config_lib.load_config(f"{CONFIGS}/{spec}").evals
  sizes = {"fewshot_vqa": "num_episodes", "perplexity": "num_documents"}
  few = [f"--config.evals.{name}.{sizes[e.type]}=2" for name, e in evals.items()]
  assert main.main([*command, "--config.train.num_steps=1", "--config.evals={}"]) == 0
  assert main.main([*command, "--config.train.num_steps=2", *few]) == 0
  results = tmp_path / "run" / "evals"
  assert {path.parts[-3] for path in results.glob("*/2/results.json")} == set(evals)
