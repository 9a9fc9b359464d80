"""The tower that `tiny` starts from can be made again."""

import importlib.resources
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from medflax.config import load_config
from medflax.data import DATASETS
from medflax.tools import pretrain_tower

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "flamingo_med.py"


def test_labels_are_what_the_media_were_drawn_from():
  config = load_config(str(CONFIG))
  dataset = DATASETS["phantom"](config.data, 0)
  batch = pretrain_tower.labelled(dataset, "val", range(2))
  sizes = [len(names) for names in pretrain_tower.ATTRIBUTES.values()]
  for kind, shape in (("image", (32, 32, 3)), ("volume", (8, 32, 32, 1))):
    media, labels = batch[kind]
    assert media.shape == (2 * pretrain_tower.PER_EPISODE, 1, *shape)
    assert labels.shape == (len(media), len(sizes))
    assert (labels < sizes).all()
    assert (labels[:, :2] >= 0).all()  # every image has a finding, even if it is none, and a look
    healthy = labels[:, 0] == sizes[0] - 1
    assert (labels[healthy, 2:4] == -1).all()


@pytest.mark.slow
def test_pretraining_makes_the_weights_that_tiny_loads(tmp_path, monkeypatch, capsys):
  target = tmp_path / "tower.safetensors"
  monkeypatch.setattr(
    "sys.argv", ["pretrain_tower", f"--config={CONFIG}", f"--to={target}", "--num_steps=2"]
  )
  pretrain_tower.main()
  assert "step 2/2  image finding" in capsys.readouterr().out
  made = safetensors.numpy.load_file(target)
  assets = importlib.resources.files("medflax") / "pretrained" / "assets"
  shipped = safetensors.numpy.load((assets / "phantom_tower.safetensors").read_bytes())
  shapes = lambda weights: {path: (x.shape, x.dtype) for path, x in weights.items()}
  assert shapes(made) == shapes(shipped)
  assert all(np.isfinite(x).all() for x in made.values())
