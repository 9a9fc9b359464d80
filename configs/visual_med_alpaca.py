r"""Visual Med-Alpaca: an expert puts the image into words, LLaMA-7B with LoRA reads them.

python -m medflax.main --config=configs/visual_med_alpaca.py
python -m medflax.main --config=configs/visual_med_alpaca.py:variant=full,data=folder \
  --config.data.root=DIR --config.init=DIR/weights.safetensors --config.tokenizer.path=DIR/tokenizer

Shu et al. 2023, github.com/cambridgeltl/visual-med-alpaca; there is no paper, and no number was
published. What the expert (Med-GIT of radiology images, DePlot of plots) says is the key `caption`
of a record; of phantoms it is a short report. `prompt` is one of its three templates: `image`,
`text` (without an image) or `training`, which needs a key `input`.
"""

from ml_collections import ConfigDict

from medflax.config import parse_arg
from medflax.defaults import QUESTIONS, base_config, phantom_scale, published_scale
from medflax.experts.templates import PROMPTS
from medflax.utils import pick


def get_config(arg: str | None = None) -> ConfigDict:
  options = parse_arg(arg, prompt="image", variant="tiny", data="phantom")
  config = base_config("visual_med_alpaca", options.variant)
  config.tokenizer.update(dict(add=("<unk>", "</s>"), pad="<unk>"))  # LLaMA has them
  text = pick(PROMPTS, options.prompt, "prompt")
  config.prompt.update(dict(question=text, answer="{answer}", media="", end="</s>"))
  lora = dict(rank=8, alpha=16.0, dropout=0.05)
  config.peft = dict(lm=dict(type="lora", target="lm/.*/attn/(query|value)/kernel", **lora))
  pick(VARIANTS, options.variant, "variant")(config)
  pick(QUESTIONS, options.data, "data")(config)
  return config


def full(config: ConfigDict) -> None:
  """LLaMA-7B with 4,194,304 weights of LoRA."""
  config.data.update(dict(max_tokens=512, max_media=dict(image=0, volume=0)))
  config.model.lm = dict(
    type="decoder",
    **dict(vocab_size=32_000, width=4096, depth=32, heads=32, kv_heads=32, mlp_width=11_008),
  )
  config.trainable = ".*/lora_[ab]"
  # The README's learning rate; the code has 3e-4. Three epochs of 52,412 instructions, whose text
  # counts in the loss there; here the responses alone do, as in their full fine-tuning.
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


VARIANTS = {"tiny": tiny, "full": full}
