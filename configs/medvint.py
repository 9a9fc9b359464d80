r"""MedVInT-TD and -TE: PMC-CLIP → query decoder → LLaMA-7B with LoRA, generating or filling in.

python -m medflax.main --config=configs/medvint.py:head=td
python -m medflax.main --config=configs/medvint.py:head=te
python -m medflax.main --config=configs/medvint.py:head=td,variant=full,data=folder \
  --config.data.root=DIR --config.init=DIR/weights.safetensors --config.tokenizer.path=DIR/tokenizer

Zhang et al. 2023, "PMC-VQA: Visual Instruction Tuning for Medical Visual Question Answering"
(arXiv 2305.10415), github.com/xiaoman-zhang/PMC-VQA. `prompt=choice` lists the options, which are
the keys `Choice A` to `Choice D` of a record, as in PMC-VQA's files; `prompt=caption` says nothing.
The stages follow one another, each from the run before, `--config.init=WORKDIR`: `prompt=caption`,
then PMC-VQA's questions, then `stage=finetune` on VQA-RAD or SLAKE.

Published, PMC-VQA's 2,000 clean test questions (as a citing work has its table): TD 40.3 % of
choices and 33.6 % of blanks, TE 37.6 % of choices.
"""

from ml_collections import ConfigDict

from medflax.config import parse_arg
from medflax.defaults import QUESTIONS, base_config, keep_best, phantom_scale, published_scale
from medflax.utils import pick

# No space before "Choices" and "The", as they have it.
PROMPTS = {
  "td": {
    "caption": "",
    "blank": "Question: {question}The Answer is:",
    "choice": "Question: {question}Choices:{Choice A}{Choice B}{Choice C}{Choice D}The Answer is:",
  },
  "te": {
    "caption": "",
    "blank": "Question: {question}The Answer is:",
    "choice": "Question: {question}The choices are: {Choice A} {Choice B} {Choice C} {Choice D}"
    "The Answer is: ",
  },
}
LORA = dict(type="lora", target="lm/.*/attn/(query|value)/kernel", rank=8, alpha=32.0, dropout=0.1)
ALL_BUT_LLAMA = "(tower|connector|lm/fused)/.*|.*/lora_[ab]"
LLAMA_7B = dict(
  type="decoder",
  **dict(vocab_size=32_000, width=4096, depth=32, heads=32, kv_heads=32, mlp_width=11_008),
)
TINY_LLAMA = dict(
  type="decoder",
  **dict(vocab_size=1032, width=64, depth=2, heads=4, kv_heads=4, mlp_width=128),
)


def get_config(arg: str | None = None) -> ConfigDict:
  options = parse_arg(
    arg, head="td", prompt="blank", stage="instruct", variant="tiny", data="phantom"
  )
  config = base_config(f"medvint_{options.head}", options.variant)
  config.tokenizer.update(dict(add=("<unk>", "<s>", "</s>"), pad="<unk>"))  # LLaMA has them
  text = pick(pick(PROMPTS, options.head, "head"), options.prompt, "prompt")
  config.prompt.update(dict(question=text, answer="{answer}"))
  config.peft = dict(lm=LORA)
  HEADS[options.head](config)
  pick(VARIANTS[options.head], options.variant, "variant")(config)
  pick(QUESTIONS, options.data, "data")(config)
  pick(STAGES, options.stage, "stage")(config)
  return config


def finetune(config: ConfigDict) -> None:
  """Their fine-tuning on one data set: a smaller batch, and the best epoch stays."""
  full, epoch = config.variant == "full", 308  # of SLAKE's 4,919 English questions
  if full:
    config.train.update(dict(batch_size=16, num_steps=100 * epoch))
    config.optimizer.update(dict(warmup_steps=3 * epoch, accumulate=1))
  keep_best(config, every=epoch if full else 50)


def td(config: ConfigDict) -> None:
  """Text decoder: 32 visual tokens, the text behind them, and the answer is generated."""
  # Media come before <s>, which also ends the answer: their tokenizer's eos_token_id is 1.
  config.prompt.update(
    dict(question=f"{{media}}{{<s>}}{config.prompt.question}", bos=False, end="<s>")
  )
  config.model.fusion = dict(type="inline")


def te(config: ConfigDict) -> None:
  """Text encoder: its states and the visual tokens pass a block, and fill masks in."""
  # There are always as many masks as an evaluation has; in their code the answer's length tells.
  config.data.answer_tokens = 8
  config.prompt.end = "</s>"
  config.data.media_mark = ""  # all of the text sees the image
  config.model.objective = dict(type="masked", mask_id=2)  # </s>


def _tower(config: ConfigDict, blocks: tuple, width: int) -> None:
  image = dict(size=config.data.get_ref("image_size"), channels=3)
  imagenet = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
  config.model.tower = dict(
    type="modified_resnet", inputs=dict(image=image), blocks=blocks, width=width, **imagenet
  )


def _full(config: ConfigDict) -> None:
  config.data.update(dict(image_size=(512, 512), max_media=dict(image=1, volume=0)))
  config.model.lm = dict(LLAMA_7B)
  config.trainable = ALL_BUT_LLAMA
  # Five epochs of PMC-VQA's 176,948 questions. The batch is that of TE's script.
  published_scale(config, lr=2e-5, schedule="cosine", warmup_steps=207)  # 3 % of the steps
  config.train.update(dict(batch_size=128, num_steps=6912))
  config.optimizer.accumulate = 8


def td_full(config: ConfigDict) -> None:
  """Three stages of PMC-CLIP's ResNet-50, whose features go on in width 1024."""
  _full(config)
  config.data.update(dict(max_tokens=32 + 512, media_tokens=32))
  _tower(config, (3, 4, 6), 64)
  config.model.connector = dict(
    type="query_decoder", num_latents=32, depth=12, heads=8, mlp_width=1024, out_width=4096
  )


def te_full(config: ConfigDict) -> None:
  """All four stages, mapped to width 768, and one block over text and image."""
  _full(config)
  config.data.max_tokens = 256
  _tower(config, (3, 4, 6, 3), 64)
  config.model.connector = dict(
    type="query_decoder", num_latents=32, depth=12, heads=4, mlp_width=768, in_width=768
  )
  config.model.fusion = dict(type="fused_head", width=768, depth=1, heads=8, mlp_width=3072)


def _tiny(config: ConfigDict) -> None:
  phantom_scale(config)
  config.model.lm = dict(TINY_LLAMA)


def td_tiny(config: ConfigDict) -> None:
  """All parts at the size of phantoms; all of it is trained."""
  _tiny(config)
  config.data.media_tokens = 4
  _tower(config, (1, 1, 1), 16)
  config.model.connector = dict(
    type="query_decoder", num_latents=4, depth=1, heads=4, mlp_width=64, out_width=64
  )


def te_tiny(config: ConfigDict) -> None:
  """All parts at the size of phantoms; all of it is trained."""
  _tiny(config)
  config.train.num_steps = 150
  _tower(config, (1, 1, 1, 1), 16)
  config.model.connector = dict(
    type="query_decoder", num_latents=4, depth=1, heads=4, mlp_width=64, in_width=64
  )
  config.model.fusion = dict(type="fused_head", width=64, depth=1, heads=4, mlp_width=128)


HEADS = {"td": td, "te": te}
STAGES = {"instruct": lambda config: None, "finetune": finetune}
VARIANTS = {
  "td": {"tiny": td_tiny, "full": td_full},
  "te": {"tiny": te_tiny, "full": te_full},
}
