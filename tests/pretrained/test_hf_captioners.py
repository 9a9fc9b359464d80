import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.models.captioner import build_captioner
from medflax.pretrained.hf_captioners import config_from_hf, mapping
from medflax.pretrained.mapping import to_ours, to_theirs
from medflax.utils import UserError
from tests.golden_cases import captioners
from tests.golden_cases.base import Case, abstract_leaves


def hf(width, depth, vision_depth, heads, size, patch, vocab, positions, frames=None):
  shared = dict(
    **dict(hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width),
    hidden_act="gelu",
  )
  vision = shared | dict(
    **dict(model_type="git_vision_model", hidden_act="quick_gelu", layer_norm_eps=1e-5),
    **dict(num_hidden_layers=vision_depth, image_size=size, patch_size=patch),
  )
  return shared | dict(
    **dict(model_type="git", vocab_size=vocab, num_hidden_layers=depth, layer_norm_eps=1e-12),
    **dict(max_position_embeddings=positions, num_image_with_embedding=frames),
    vision_config=vision,
  )


def shapes(config, frames=1):
  section = config_from_hf(config)
  size = section["tower"]["inputs"]["image"]["size"]
  media, tokens = jnp.zeros((1, frames, *size, 3)), jnp.zeros((1, 1), jnp.int32)
  return section, abstract_leaves(build_captioner(section), media, tokens)


@pytest.mark.parametrize("frames", [None, 3])
def test_every_leaf_goes_there_and_back(frames):
  section, leaves = shapes(hf(8, 2, 1, 2, 8, 4, 11, 9, frames), frames or 1)
  rng = np.random.default_rng(0)
  ours = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in leaves.items()}
  theirs = to_theirs(mapping(section), ours)
  assert ("git.img_temporal_embedding.2" in theirs) == bool(frames)
  again = to_ours(mapping(section), leaves, theirs)
  assert again.keys() == ours.keys()
  for path, value in ours.items():
    np.testing.assert_array_equal(again[path], value)


def test_git_base_has_the_published_size():
  _, leaves = shapes(hf(768, 6, 12, 12, 224, 16, 30_522, 1024))
  assert sum(x.size for x in jax.tree.leaves(leaves)) == 176_619_066


def test_another_model_type_is_named():
  with pytest.raises(UserError, match="model_type 'blip' is no captioner"):
    config_from_hf(hf(8, 2, 1, 2, 8, 4, 11, 9) | dict(model_type="blip"))


@pytest.mark.parametrize("variant", ["git", "git_video"])
def test_parity_with_the_original(golden_folder, variant):
  results = list(captioners.captioner(Case(golden_folder("git"), variant)))
  assert len(results) == 3
  assert [result for result in results if not result.passed] == []
