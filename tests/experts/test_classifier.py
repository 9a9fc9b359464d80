"""Kinds of images are told apart."""

import numpy as np
import pytest

from medflax.data.phantoms.charts import draw_chart, render_chart
from medflax.data.phantoms.others import render_other
from medflax.experts.classifier import KINDS, Classifier, fit_head, load_head
from medflax.tools.train_classifier import generated, halves, main
from medflax.utils import UserError


def test_the_shipped_one_knows_held_out_phantoms_and_charts():
  images = generated(32, seed=1, split="test")
  route = Classifier()
  assert route([]) == []
  right = {kind: np.mean([r.kind == kind for r in route(images[kind])]) for kind in KINDS}
  assert min(right.values()) > 0.8, right
  [routed] = route(images["plot"][:1])
  assert 1 / 3 < routed.probability <= 1


def test_a_linear_head_separates_what_is_separable_and_is_kept(tmp_path):
  rng = np.random.default_rng(0)
  labels = np.repeat([0, 1, 2], [40, 10, 20])
  features = rng.normal(size=(70, 4)) + 8 * np.eye(4)[labels]
  head = fit_head(features, labels, ("a", "b", "c"), "tower")
  chosen = head.log_probabilities(features)
  assert (chosen.argmax(1) == labels).all()
  np.testing.assert_allclose(np.exp(chosen).sum(1), 1)
  (tmp_path / "head").write_bytes(head.to_bytes())
  again = load_head(tmp_path / "head")
  assert (again.kinds, again.tower) == (("a", "b", "c"), "tower")
  np.testing.assert_allclose(again.log_probabilities(features), chosen, atol=1e-4)


def test_generated_images_depend_on_seed_and_split_alone():
  a, b, other = (generated(16, seed=0, split=s) for s in ("train", "train", "test"))
  np.testing.assert_array_equal(a["plot"][3], b["plot"][3])
  assert a["none"][0].shape != other["none"][0].shape or (a["none"][0] != other["none"][0]).any()


def test_halves_hold_out_some_of_every_kind():
  train, test = halves({"a": [np.zeros((1, 1, 3), np.uint8)] * 8, "b": [None] * 2})
  assert [len(train[k]) for k in "ab"] == [6, 1] and [len(test[k]) for k in "ab"] == [2, 1]


def write(folder, count):
  from PIL import Image

  rng = np.random.default_rng(0)
  for i in range(count):
    chart = render_chart(draw_chart(rng), (64, 64), rng)
    for kind, image in (("chart", chart), ("other", render_other(rng, (64, 64)))):
      (folder / kind).mkdir(parents=True, exist_ok=True)
      Image.fromarray(image).save(folder / kind / f"{i}.png")


def test_ones_own_images(tmp_path, capsys):
  write(tmp_path / "images", 8)
  file = tmp_path / "head.safetensors"
  command = ["--images", str(tmp_path / "images"), "--to", str(file)]
  assert main(command) == 0
  told = capsys.readouterr().out.splitlines()
  assert told[0] == "held out:" and told[1].startswith("chart ") and "/2 right" in told[1]
  assert Classifier(file).head.kinds == ("chart", "other")
  assert main(command) == 2
  assert "exists; remove it" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path, capsys):
  (tmp_path / "images" / "a").mkdir(parents=True)
  assert main(["--images", str(tmp_path / "images"), "--to", str(tmp_path / "x")]) == 2
  assert "a folder of images for each of two or more kinds" in capsys.readouterr().err
  (tmp_path / "images" / "b").mkdir()
  assert main(["--images", str(tmp_path / "images"), "--to", str(tmp_path / "x")]) == 2
  assert "images/a: needs two or more images" in capsys.readouterr().err
  (tmp_path / "head").write_bytes(b"no")
  with pytest.raises(UserError, match="is no classifier that"):
    load_head(tmp_path / "head")
