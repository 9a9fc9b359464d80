"""Every shipped config builds, and published models have the sizes that were published."""

import math
import pathlib
import runpy

import pytest

from medflax import config as config_lib
from medflax.build import build

CONFIG = pathlib.Path(__file__).resolve().parent.parent / "configs" / "flamingo_med.py"
FILE = runpy.run_path(str(CONFIG))


def parts(arg):
  config = config_lib.load_config(f"{CONFIG}:{arg}", [])
  config_lib.validate(config)
  return build(config)


def sizes(parts):
  """Number of weights by 'path/to/leaf', trainable and frozen; nothing is allocated."""
  leaves = parts.state.trainable | parts.state.frozen
  return {path: math.prod(leaf.shape) for path, leaf in leaves.items()}


@pytest.mark.parametrize("variant", FILE["VARIANTS"])
@pytest.mark.parametrize("data", FILE["DATA"])
def test_every_variant_builds(variant, data):
  built = parts(f"variant={variant},data={data}")
  assert built.state.trainable
  assert bool(built.state.frozen) == (built.config.trainable != ".*")


def test_tiny_is_under_a_million():
  assert sum(sizes(parts("variant=tiny")).values()) < 1_000_000


def test_9b_has_the_published_sizes():
  """OpenFlamingo-9B's resampler and gated blocks, LLaMA-7B and CLIP ViT-L/14."""
  built = parts("variant=9b")
  weights = sizes(built)
  count = lambda *prefixes: sum(n for path, n in weights.items() if path.startswith(prefixes))
  xattn = sum(n for path, n in weights.items() if "/xattn/" in path)

  assert count("connector/") == 63_019_008
  assert xattn == 8 * 139_476_994
  # Three tokens more, in the embedding and in the head.
  assert count("lm/") - xattn == 6_738_415_616 + 2 * 3 * 4096
  # Without the projection to CLIP's joint space and the LayerNorm before it.
  assert count("tower/") == 303_966_208 - 786_432 - 2_048
  assert sum(weights.values()) == count("connector/", "lm/", "tower/")

  trained = {path for path in built.state.trainable if "/xattn/" not in path}
  assert {path for path in trained if not path.startswith("connector/")} == {"lm/embedding"}
