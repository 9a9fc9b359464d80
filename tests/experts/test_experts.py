"""Experts that were imported read images as their originals prepare them, and write greedily."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.experts.captioner import GitExpert, centred
from medflax.experts.deplot import DePlotExpert, as_lines, flat_patches, patch_grid, with_header
from medflax.models.vision.patches import Patches
from medflax.utils import UserError
from tests.experts import imports

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, size, np.uint8) for size in ((9, 7, 3), (5, 12, 3), (4, 4, 3))]


@pytest.fixture(scope="module")
def git(tmp_path_factory):
  return imports.write(tmp_path_factory.mktemp("git"), "captioner", imports.GIT)


@pytest.fixture(scope="module")
def deplot(tmp_path_factory):
  return imports.write(tmp_path_factory.mktemp("deplot"), "lm", imports.PIX2STRUCT)


def check_greedy(tokens, logits, end):
  """Each token is the likeliest after those before it, up to the first that ends them."""
  ends = np.flatnonzero(tokens == end)
  length = ends[0] + 1 if len(ends) else len(tokens)
  np.testing.assert_array_equal(jnp.argmax(logits, axis=-1)[:length], tokens[:length])


def test_captions_are_the_whole_models_greedy_choices(git):
  expert = GitExpert(git)
  texts = expert(IMAGES)
  assert len(texts) == 3 and texts[2:] == expert(IMAGES[2:])
  params, media = expert._git.params, jnp.asarray(centred(IMAGES[2], (4, 4)))[None, None]
  tokens = np.asarray(expert._tokens(params, media))[0]
  assert len(tokens) == 8  # the model has nine positions, and one is the beginning's
  row = jnp.asarray([[1, *tokens[:-1]]])
  logits, _ = jax.jit(expert._model.apply)({"params": params}, media, row)
  check_greedy(tokens, logits[0, -8:], end=2)
  assert texts[2] == expert._git.tokenizer.decode(tokens).strip()


def test_tables_are_the_whole_models_greedy_choices(deplot):
  expert = DePlotExpert(deplot, header="", max_patches=6, max_new_tokens=5)
  texts = expert(IMAGES)
  assert len(texts) == 3 and texts[1:2] == expert(IMAGES[1:2])
  params, patches = expert._read.params, jnp.asarray(flat_patches(IMAGES[1], 2, 6))[None]
  tokens = np.asarray(expert._tokens(params, patches))[0]
  row = jnp.asarray([[0, *tokens[:-1]]])
  logits = jax.jit(expert._model.apply)({"params": params}, patches, patches[..., 0] > 0, row)
  check_greedy(tokens, jnp.asarray(logits)[0], end=2)
  assert texts[1] == as_lines(expert._read.tokenizer.decode(tokens))


def test_the_header_stands_above_the_image():
  image = np.full((30, 40, 3), 7, np.uint8)
  both = with_header(image, "Generate the table:")
  assert both.shape[1] > 100 and (both[-1] == 7).all()
  header = both[: both.shape[0] - round(30 * both.shape[1] / 40)]
  assert header.max() == 255 and header.min() == 0
  wide = with_header(np.zeros((10, 2000, 3), np.uint8), "a")
  assert wide.shape[1] == 2000
  assert with_header(image, "") is image


def test_the_grid_keeps_proportions_within_what_is_allowed():
  assert patch_grid(300, 400, 16, 2048) == (39, 52)
  assert patch_grid(1, 9000, 16, 2048)[0] == 1
  for height, width in ((10, 10), (1, 5000), (777, 31)):
    rows, columns = patch_grid(height, width, 16, 512)
    assert 1 <= rows * columns <= 512


def test_patches_are_those_of_the_tower():
  """The tower of configs/deplot.py, whose images are whole patches, and Pix2Struct's own."""
  image = RNG.integers(0, 256, (6, 8, 3), np.uint8)
  flat = flat_patches(image, 2, 12)
  np.testing.assert_array_equal(flat[:5, :2], [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1]])
  spec = dict(size=(6, 8), patch=(2, 2), channels=3)
  tower = Patches(inputs=dict(image=spec)).apply({}, jnp.asarray(image)[None], "image")
  np.testing.assert_allclose(np.asarray(tower)[0], flat, atol=1e-5)
  assert (flat_patches(image, 2, 20)[12:] == 0).all() or patch_grid(6, 8, 2, 20) != (3, 4)
  even = np.full((6, 8, 3), 9, np.uint8)
  assert not flat_patches(even, 2, 12)[:, 2:].any()


def test_git_sees_the_centre():
  image = np.zeros((4, 12, 3), np.uint8)
  image[:, 4:8] = 255
  seen = centred(image, (4, 4))
  assert seen.shape == (4, 4, 3) and seen.dtype == np.float32 and seen.min() == 1
  assert centred(image[:, :3], (4, 4)).shape == (4, 4, 3)


def test_tables_as_lines():
  assert as_lines("Group | Value <0x0A> A | 3 <0x0A>") == "Group | Value\nA | 3"


def test_folders_of_something_else_are_told(git, deplot, tmp_path):
  with pytest.raises(UserError, match="describes lm, but no captioner"):
    GitExpert(deplot)
  with pytest.raises(UserError, match="describes captioner, but no lm"):
    DePlotExpert(git)
  t5 = imports.write(tmp_path / "t5", "lm", imports.PIX2STRUCT | dict(places=0))
  with pytest.raises(UserError, match="is no Pix2Struct"):
    DePlotExpert(t5)
