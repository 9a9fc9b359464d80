"""The configs of published systems are what their checkpoints' shapes say."""

import pathlib
import runpy

import numpy as np
import pytest

from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.leaves import abstract_leaves
from medflax.pretrained.mapping import split, their_shape
from medflax.pretrained.systems import gemma3_vlm, llava, medvint, radfm
from tests.pretrained.systems.test_gemma3_vlm import MEDGEMMA

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"
PARTS = ("tower", "connector", "fusion", "lm")
LLAVA = dict(lm="model.", head="", projector=("model.mm_projector.0", "model.mm_projector.2"))
TOWER = "model.vision_tower.vision_tower.vision_model."
# What LLaVA-Med's config.json says beside the sizes.
MISTRAL = dict(model_type="llava_mistral", rope_theta=1e6, rms_norm_eps=1e-5, hidden_act="silu")


def published(name, arg):
  """The sections of a config's full variant."""
  config = runpy.run_path(str(CONFIGS / name))["get_config"](arg)
  return {part: config.model[part].to_dict() for part in PARTS}


def shapes(mapping, sections):
  """A checkpoint of these sections, of which there are but names and shapes."""
  leaves, found = abstract_leaves(sections), {}
  for key, parts in split({path: mapping[path] for path in leaves}).items():
    inner = {p: (t, leaves[p].shape[0 if i is None else 1 :]) for p, (t, i) in parts.items()}
    found[key] = LazyTensor(tuple(their_shape(inner)), np.dtype(np.float32), lambda: None)
  return found


def from_radfm():
  sections = published("radfm.py", "variant=full,data=folder")
  yield sections, radfm.config_from_tensors(shapes(radfm.mapping(sections), sections))


def from_medvint(head, language):
  sections = published("medvint.py", f"head={head},variant=full,data=folder")
  mapping = medvint.MAPPINGS[f"medvint_{head}"](sections, language)
  back = {"td": medvint.td_config, "te": medvint.te_config}[head]
  yield sections, back(shapes(mapping, sections))


def from_llava():
  sections = published("llava_med.py", "variant=full,data=folder")
  origin = dict(names=LLAVA, sections=sections, model_type="mistral", tower=TOWER)
  tensors = shapes(llava.table(origin), sections)
  layer = f"{TOWER}encoder.layers.{{}}."  # the last one is not used
  first, last = layer.format(0), layer.format(sections["tower"]["depth"])
  tensors |= {k.replace(first, last): x for k, x in tensors.items() if k.startswith(first)}
  yield sections, llava.checkpoint(MISTRAL, tensors).sections


SYSTEMS = {
  "radfm": from_radfm,
  "medvint_td": lambda: from_medvint("td", "llamacasual.base_model.model.model."),
  "medvint_te": lambda: from_medvint("te", "text_encoder.base_model.model."),
  "llava_med": from_llava,
  "medgemma": lambda: iter(
    [(published("medgemma.py", "variant=full,data=folder"), gemma3_vlm.config_from_hf(MEDGEMMA))]
  ),
}


def assert_says(found, config, at):
  """Whatever the config says is found; the rest are defaults."""
  if isinstance(config, dict):
    for name, value in config.items():
      assert_says(found[name], value, f"{at}.{name}")
  else:
    same = (tuple(x) if isinstance(x, list) else x for x in (found, config))
    assert len(set(same)) == 1, f"{at}: {found} in the checkpoint, {config} in the config"


@pytest.mark.parametrize("system", SYSTEMS)
def test_config_is_as_the_shapes_say(system):
  [(config, found)] = SYSTEMS[system]()
  for part in PARTS:
    assert_says(found[part], config[part], part)
