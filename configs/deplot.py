r"""DePlot: an encoder reads a chart's patches, a decoder writes its table in one line.

python -m medflax.main --config=configs/deplot.py
python -m medflax.main --config=configs/deplot.py:variant=full,data=folder \
  --config.data.root=DIR --config.init=DIR/weights.safetensors --config.tokenizer.path=DIR/tokenizer

Liu et al. 2023, "DePlot: One-shot visual language reasoning by plot-to-table translation" (arXiv
2212.10505), Pix2Struct of Lee et al. 2023 trained on charts; `hugging_face` imports google/deplot.
Visual Med-Alpaca's expert for plots. `tiny` learns it on bar charts that are drawn as they are
needed. Charts here fill a square of fixed size, without the line of text above that tells
Pix2Struct what to do, for there is but one thing.

Published: see the paper, by the metric `rms_f1`.
"""

from typing import Any

from ml_collections import ConfigDict

from medflax.config import parse_arg
from medflax.defaults import QUESTIONS, base_config, phantom_scale, published_scale
from medflax.utils import pick


def get_config(arg: str | None = None) -> ConfigDict:
  options = parse_arg(arg, variant="tiny", data="charts")
  config = base_config("deplot", options.variant)
  config.data.update(dict(media_mark="", max_media=dict(image=1, volume=0)))
  config.prompt.update(dict(question="{<pad>}", answer="{answer}", bos=False))
  config.model.objective = dict(type="image_to_text")
  pick(VARIANTS, options.variant, "variant")(config)
  pick(DATA, options.data, "data")(config)
  return config


def _parts(config: ConfigDict, patch: int, sizes: dict[str, Any], **lm: Any) -> None:
  image = dict(size=config.data.get_ref("image_size"), patch=(patch, patch), channels=3)
  config.model.tower = dict(type="patches", inputs=dict(image=image))
  layers = dict(sizes, mlp="gated", activation="gelu_tanh")
  relative = dict(buckets=32, max_distance=128)
  config.model.lm = dict(
    type="encoder_decoder", encoder_layers=layers, decoder_layers=layers | relative, **lm
  )


def full(config: ConfigDict) -> None:
  """Pix2Struct-base, 282 M parameters, on 45 × 45 patches of the 2048 that it may read."""
  config.data.update(dict(image_size=(720, 720), max_tokens=512))
  config.tokenizer.update(dict(add=(), pad="<pad>"))
  config.prompt.end = "</s>"
  sizes = dict(depth=12, heads=12, kv_heads=12, head_dim=64, mlp_width=2048, query_scale=1.0)
  _parts(config, 16, sizes, vocab_size=50_244, width=768, places=4096)
  # A usual fine-tuning's; the paper's recipe starts from Pix2Struct and has Adafactor.
  published_scale(config, lr=1e-4, schedule="cosine", warmup_steps=1000)
  config.train.update(dict(batch_size=256, num_steps=10_000))


def tiny(config: ConfigDict) -> None:
  """The same at the size of a test."""
  phantom_scale(config)
  config.data.update(dict(image_size=(64, 64), max_tokens=80, max_media=dict(image=1, volume=0)))
  config.prompt.end = "<eos>"
  sizes = dict(depth=2, heads=4, kv_heads=4, head_dim=16, mlp_width=128)
  _parts(config, 8, sizes, vocab_size=1032, width=64, places=10)
  config.train.update(dict(num_steps=1000, batch_size=32))
  config.checkpoint.every = 250


def charts(config: ConfigDict) -> None:
  """Generated bar charts; see docs/phantoms.md."""
  config.data.source = "charts"
  config.data.train = dict(table=dict(task="table", num_shots=(0, 0), weight=1.0, targets="all"))
  config.evals = dict(
    table=dict(
      **dict(type="fewshot_vqa", every=0, task="table", split="test", num_shots=(0,)),
      **dict(num_episodes=256, decoding=dict(max_new_tokens=72), slice_by=("count",)),
      metrics=("rms_f1", "table_cells", "exact_match"),
    )
  )


VARIANTS = {"tiny": tiny, "full": full}
DATA = QUESTIONS | {"charts": charts}
