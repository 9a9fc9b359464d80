"""A run small enough for tests: a few thousand weights on 16 coloured squares."""

import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from medflax import config as config_lib
from medflax import report, trainer

CONFIG = pathlib.Path(__file__).resolve().parent.parent / "configs" / "flamingo_med.py"
OVERRIDES = {
  "data.image_size": "8,8",
  "data.volume_size": "2,8,8",
  "data.max_tokens": "48",
  "data.max_media": "{'image': 3}",
  "data.train.vqa.num_shots": "(0, 1)",
  "data.packing_bins": "2",
  "model.tower.width": "8",
  "model.tower.depth": "1",
  "model.tower.heads": "2",
  "model.tower.mlp_width": "8",
  "model.connector.num_latents": "2",
  "model.connector.heads": "2",
  "model.connector.head_dim": "4",
  "model.fusion.heads": "2",
  "model.fusion.head_dim": "4",
  "model.lm.width": "8",
  "model.lm.depth": "1",
  "model.lm.heads": "2",
  "model.lm.kv_heads": "2",
  "model.lm.mlp_width": "8",
  "train.num_steps": "6",
  "train.batch_size": "2",
  "train.log_every": "2",
  "optimizer.warmup_steps": "0",
  "checkpoint.every": "2",
  "evals": "{}",
  "init": "",
}


def write_images(root: pathlib.Path) -> pathlib.Path:
  """A folder data set: red and blue squares, and what colour they are."""
  root.mkdir(parents=True, exist_ok=True)
  rng, rows = np.random.default_rng(0), []
  for i in range(16):
    image = rng.integers(0, 90, (8, 8, 3), dtype=np.uint8)
    image[..., 2 * (i % 2)] += 150
    Image.fromarray(image).save(root / f"{i}.png")
    row = {"id": str(i), "images": [f"{i}.png"], "question": "Colour?"}
    split = ("train", "train", "val", "test")[i // 2 % 4]
    rows.append(row | {"answer": ("red", "blue")[i % 2], "split": split})
  (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return root


def config(root: pathlib.Path, **overrides: str):
  """The validated config; keyword `train__lr="1"` overrides `train.lr`."""
  changed = {name.replace("__", "."): text for name, text in overrides.items()}
  pairs = OVERRIDES | {"data.root": str(root)} | changed
  out = config_lib.load_config(f"{CONFIG}:data=folder", list(pairs.items()))
  config_lib.validate(out)
  return out


def command(root: pathlib.Path, workdir: pathlib.Path, **overrides: str) -> list[str]:
  """The same run as a command line."""
  changed = {name.replace("__", "."): text for name, text in overrides.items()}
  pairs = OVERRIDES | {"data.root": str(root)} | changed
  flags = [f"--config.{name}={text}" for name, text in pairs.items()]
  main = [sys.executable, "-m", "medflax.main", f"--config={CONFIG}:data=folder"]
  return [*main, *flags, f"--workdir={workdir}"]


def train(config, workdir: pathlib.Path, *, evaluates: bool = True) -> pathlib.Path:
  """Trains without the report, which has tests of its own; returns `workdir`."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, "write_report", lambda workdir: workdir / "report.html")
    patch.setattr(report, "fewshot_table", lambda workdir: "the table")
    if not evaluates:
      patch.setattr(trainer.Run, "_evaluate", lambda *_: False)
    trainer.train(config, workdir, command="")
  return workdir
