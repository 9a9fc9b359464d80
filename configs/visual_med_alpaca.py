r"""Visual Med-Alpaca: an expert puts the image into words, LLaMA-7B with LoRA reads them.

python -m medflax.main --config=configs/visual_med_alpaca.py
python -m medflax.main --config=configs/visual_med_alpaca.py:variant=full,data=folder \
  --config.data.root=DIR --config.init=DIR/weights.safetensors --config.tokenizer.path=DIR/tokenizer

Shu et al. 2023, github.com/cambridgeltl/visual-med-alpaca; there is no paper, and no number was
published. What the expert (Med-GIT of radiology images, DePlot of plots) says is the key `caption`
of a record; of phantoms it is a short report. `prompt` is one of its three templates: `image`,
`text` (without an image) or `training`, which needs a key `input`. `preset` is `readme`, or `code`
where that differs. `data=experts` adds questions on charts to those on phantoms.
"""

from ml_collections import ConfigDict

from medflax.config import parse_arg
from medflax.defaults import QUESTIONS, base_config, phantom_scale, published_scale
from medflax.experts.templates import PROMPTS
from medflax.utils import pick


def get_config(arg: str | None = None) -> ConfigDict:
  options = parse_arg(arg, prompt="image", preset="readme", variant="tiny", data="phantom")
  config = base_config("visual_med_alpaca", options.variant)
  config.tokenizer.update(dict(add=("<unk>", "</s>"), pad="<unk>"))  # LLaMA has them
  text = pick(PROMPTS, options.prompt, "prompt")
  config.prompt.update(dict(question=text, answer="{answer}", media="", end="</s>"))
  lora = dict(rank=8, alpha=16.0, dropout=0.05)
  config.peft = dict(lm=dict(type="lora", target="lm/.*/attn/(query|value)/kernel", **lora))
  pick(VARIANTS, options.variant, "variant")(config)
  pick(DATA, options.data, "data")(config)
  pick(PRESETS, options.preset, "preset")(config)
  return config


def code(config: ConfigDict) -> None:
  """What their LoRA script does: a higher learning rate, and the prompt counts in the loss."""
  config.optimizer.lr = 3e-4
  for entry in config.data.train.values():
    entry.targets = "whole"


def full(config: ConfigDict) -> None:
  """LLaMA-7B with 4,194,304 weights of LoRA."""
  config.data.update(dict(max_tokens=512, max_media=dict(image=0, volume=0)))
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=32_000, width=4096, depth=32, heads=32, kv_heads=32, mlp_width=11_008),
  )
  config.trainable = ".*/lora_[ab]"
  # Three epochs of 52,412 instructions. Responses alone count, as in their full fine-tuning.
  published_scale(config, lr=1e-4, schedule="linear", warmup_steps=100)
  config.train.update(dict(batch_size=128, num_steps=1228))
  config.optimizer.accumulate = 4


def tiny(config: ConfigDict) -> None:
  """The same at the size of a test; all of it is trained."""
  phantom_scale(config)
  config.data.update(dict(max_tokens=192, max_media=dict(image=0, volume=0)))
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=1032, width=64, depth=2, heads=4, kv_heads=4, mlp_width=128),
  )


def experts(config: ConfigDict) -> None:
  """Questions on phantoms and on bar charts, each with what an expert would say of the image."""
  config.data.update(dict(source="mixture", image_size=(48, 48)))  # charts are no smaller
  config.data.sources = dict(phantom=dict(source="phantom"), charts=dict(source="charts"))
  tasks = {"phantom/finding": 1.0, "phantom/modality": 0.5, "charts/highest": 1.0}
  tasks["charts/value"] = 1.0
  names = {task: task.replace("/", "_") for task in tasks}
  shots = dict(num_shots=(0, 0), targets="all")
  config.data.train = {names[t]: dict(task=t, weight=w, **shots) for t, w in tasks.items()}
  asked = dict(
    **dict(type="fewshot_vqa", every=0, split="test", num_shots=(0,), num_episodes=128),
    decoding=dict(max_new_tokens=6),
  )
  config.evals = {names[task]: dict(asked, task=task) for task in tasks}


VARIANTS = {"tiny": tiny, "full": full}
PRESETS = {"readme": lambda config: None, "code": code}
DATA = QUESTIONS | {"experts": experts}
