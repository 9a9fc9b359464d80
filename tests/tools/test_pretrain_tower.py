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
  batch = pretrain_tower.labelled(dataset, ("image", "volume"), "val", range(2))
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
def test_pretraining_makes_the_weights_that_tiny_loads(tmp_path, capsys):
  target = tmp_path / "tower.safetensors"
  assert pretrain_tower.main([f"--config={CONFIG}", f"--to={target}", "--num_steps=2"]) == 0
  assert "step 2/2  image finding" in capsys.readouterr().out
  made = safetensors.numpy.load_file(target)
  assets = importlib.resources.files("medflax") / "pretrained" / "assets"
  shipped = safetensors.numpy.load((assets / "phantom_tower.safetensors").read_bytes())
  shapes = lambda weights: {path: (x.shape, x.dtype) for path, x in weights.items()}
  assert shapes(made) == shapes(shipped)
  assert all(np.isfinite(x).all() for x in made.values())


def test_a_tower_of_images_alone(tmp_path, capsys):
  """Latents need not be as wide as the tower, nor the config have volumes."""
  target = tmp_path / "tower.safetensors"
  config = CONFIG.with_name("prefix_vqa.py")
  assert pretrain_tower.main([f"--config={config}", f"--to={target}", "--num_steps=1"]) == 0
  assert "volume" not in capsys.readouterr().out
  assert {path.split("/")[0] for path in safetensors.numpy.load_file(target)} == {
    "tower",
    "connector",
  }


def test_mistakes_are_told(tmp_path, capsys):
  target = tmp_path / "tower.safetensors"
  text_alone = CONFIG.with_name("visual_med_alpaca.py")
  assert pretrain_tower.main([f"--config={text_alone}", f"--to={target}"]) == 2
  assert capsys.readouterr().err.startswith("error: config.data.max_media: there are no media")
  target.write_text("")
  assert pretrain_tower.main([f"--config={CONFIG}", f"--to={target}"]) == 2
  assert "exists; remove it" in capsys.readouterr().err
