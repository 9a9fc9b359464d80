"""Media are embedded once each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze, meta

from medflax.inference.features import FeatureStore, MediaFeatures, embed
from medflax.models import build_model
from medflax.utils import UserError

CONFIG = {
  "tower": {
    "type": "vit",
    **dict(width=16, depth=1, heads=2, mlp_width=16),
    "inputs": {"image": {"size": (8, 8), "patch": (4, 4), "channels": 1}},
  },
  "connector": {"type": "perceiver", "num_latents": 2, "depth": 1, "heads": 2, "head_dim": 8},
  "fusion": {"type": "gated_xattn", "xattn_every": 1, "heads": 2, "head_dim": 8},
  "lm": {
    "type": "decoder",
    **dict(vocab_size=23, width=16, depth=1, heads=2, kv_heads=1, mlp_width=32),
  },
  "dtype": "float32",
  "remat": "none",
}
IMAGES = np.random.default_rng(0).normal(0, 3, (4, 2, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def model_and_params():
  model, tokens = build_model(freeze(CONFIG)), jnp.ones((4, 2), jnp.int32)
  ordinal = {"image": jnp.ones((4, 2), jnp.int32)}
  init = jax.jit(model.init)
  made = init(jax.random.key(0), {"image": IMAGES}, tokens, tokens, media_ordinal=ordinal)
  return model, meta.unbox(made)["params"]


def embedder(calls):
  def embed_sums(media):
    [(kind, chunk)] = media.items()
    calls.append((kind, chunk.shape))
    flat = chunk.reshape(len(chunk), -1).astype(np.float32)
    return jnp.asarray(np.stack([flat.sum(1), flat.max(1)], axis=1)[:, None])

  return embed_sums


def test_each_distinct_media_is_embedded_once_in_chunks_of_one_shape():
  calls = []
  features = MediaFeatures(embedder(calls), chunk_size=4)
  images = [np.full((2, 2, 1), value, np.float32) for value in range(6)]
  volume = np.ones((3, 2, 2, 1), np.float32)
  rows = [features.add(image, "image") for image in images + images[::-1]]
  rows.append(features.add(volume, "volume"))
  features.finish()
  assert rows == [*range(6), *range(6)[::-1], 6]
  assert calls == [("image", (4, 1, 2, 2, 1))] * 2 + [("volume", (4, 1, 3, 2, 2, 1))]
  assert features.programs == 2
  taken = features.take(np.array([[5, 0], [6, -1]]))
  np.testing.assert_array_equal(taken[..., 0, 0], [[20, 0], [12, 0]])


def test_media_of_one_content_but_another_type_are_told_apart():
  features = MediaFeatures(embedder([]), chunk_size=2)
  zeros = [
    np.zeros((4, 4, 1), np.uint8),
    np.zeros((4, 4, 1), np.float32),
    np.zeros((2, 8, 1), "u1"),
  ]
  assert [features.add(x, "image") for x in zeros] == [0, 1, 2]


def test_embedding_by_chunks_is_embedding_by_rows(model_and_params):
  model, params = model_and_params
  features = MediaFeatures(lambda media: embed(model, params, media), chunk_size=3)
  images = IMAGES.reshape(-1, 8, 8, 1)
  rows = np.array([features.add(image, "image") for image in images]).reshape(4, 2)
  features.finish()
  apply = jax.jit(lambda media: model.apply({"params": params}, media, method="embed_media"))
  np.testing.assert_allclose(features.take(rows), apply({"image": IMAGES}), atol=1e-4)


def test_more_media_may_follow_and_what_memory_does_not_hold_lies_on_disk():
  images = [np.full((2, 2, 1), value, np.float32) for value in range(9)]
  stores, taken = [FeatureStore(), FeatureStore(memory=40)], []
  for store in stores:
    features = MediaFeatures(embedder([]), 2, store)
    for image in images[:3]:
      features.add(image, "image")
    features.finish()
    rows = np.array([[features.add(image, "image") for image in images]])
    features.finish()
    taken.append(features.take(rows))
    assert features.add(images[0], "image") == rows[0, 0]
  np.testing.assert_array_equal(*taken)
  np.testing.assert_array_equal(taken[0][0, :, 0, 0], [4 * value for value in range(9)])
  on_disk = [
    [isinstance(row, np.memmap) for row in store._features.values()]  # in the order of `add`
    for store in stores
  ]
  assert on_disk == [[False] * 9, [False] * 5 + [True] * 4]


def test_what_is_in_the_store_is_not_embedded_again():
  images = [np.full((2, 2, 1), value, np.float32) for value in range(6)]
  volume = np.ones((3, 2, 2, 1), np.float32)
  store, calls, taken = FeatureStore(), [], []
  for shown in (images[:4], images[:0:-1]):
    features = MediaFeatures(embedder(calls), 3, store)
    rows = np.array([[features.add(image, "image") for image in [*shown, shown[0]]]])
    assert rows.tolist() == [[*range(len(shown)), 0]]
    features.finish()
    assert features.programs == 1
    taken.append(features.take(rows)[0, :, 0, 0].tolist())
  assert taken == [[0, 4, 8, 12, 0], [20, 16, 12, 8, 4, 20]]
  assert len(calls) == 3  # of 4, then of 2 images
  other = MediaFeatures(embedder(calls), 2, store)  # other chunks are another program
  rows = np.array([[other.add(images[0], "image"), other.add(volume, "volume")]])
  other.finish()
  assert other.take(rows)[0, :, 0, 0].tolist() == [0, 12]
  assert len(calls) == 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_bit_depends_on_what_else_is_in_a_chunk(model_and_params, dtype):
  model, params = build_model(freeze(CONFIG | {"dtype": dtype})), model_and_params[1]
  images, rng = IMAGES.reshape(8, 1, 8, 8, 1)[:7], np.random.default_rng(1)
  alone = np.concatenate([embed(model, params, {"image": _chunk([image])})[:1] for image in images])
  for _ in range(5):
    order = rng.permutation(7)
    together = np.asarray(embed(model, params, {"image": _chunk(images[order])}))[:7]
    np.testing.assert_array_equal(together, alone[order])


def _chunk(images):
  """The images, and nothing, up to 9."""
  return np.concatenate([images, np.zeros((9 - len(images), 1, 8, 8, 1), np.float32)])


def test_features_tied_to_places_are_refused(model_and_params):
  config = CONFIG | {"connector": CONFIG["connector"] | {"max_media": 4}}
  model = build_model(freeze(config))
  with pytest.raises(UserError, match="max_media"):
    embed(model, model_and_params[1], {"image": np.zeros((1, 1, 8, 8, 1), np.float32)})
