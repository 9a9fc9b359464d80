import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.models.vision.resnet import ModifiedResNet, StoredBatchNorm
from medflax.pretrained import open_clip
from tests.foreign import abstract_params, agrees, apply, imported, random_params

COUNTERS = r".*num_batches_tracked"


def resnet(section):
  return ModifiedResNet(**{name: value for name, value in section.items() if name != "type"})


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_parity_with_pmc_clip(golden, stages):
  theirs, arrays, config = golden("medvint", "pmc_clip_modified_resnet")
  x = jnp.asarray(arrays["in.images"]).transpose(0, 2, 3, 1)
  blocks = config["layers"][:stages]
  section = open_clip.resnet_config(blocks, width=config["width"], image_size=config["image"])
  section |= dict(mean=(0.0,), std=(1.0,))
  model = resnet(section)
  left_out = "|".join([COUNTERS, r"attnpool\..*", rf"layer[{stages + 1}-5]\..*"])
  mapping = open_clip.resnet_mapping(section, prefix="")
  got = apply(model, imported(mapping, model, theirs, x, "image", ignore=left_out), x, "image")
  want = arrays[f"out.layer{stages}"]
  agrees(got, want.reshape(*want.shape[:2], -1).swapaxes(1, 2))
  if stages == 4:
    pooled = section | dict(projection=config["output_dim"], heads=config["heads"])
    model, mapping = resnet(pooled), open_clip.resnet_mapping(pooled, prefix="")
    got = apply(model, imported(mapping, model, theirs, x, "image", ignore=COUNTERS), x, "image")
    agrees(got[:, 0], arrays["out.image_features"])


def test_parity_with_medvints_cut_tower(golden):
  theirs, arrays, _ = golden("medvint", "td_pmcclip_mlp")
  x = jnp.asarray(arrays["in.images"]).transpose(0, 2, 3, 1)
  section = open_clip.resnet_config((1, 2, 1), width=8, image_size=64)
  section |= dict(mean=(0.0,), std=(1.0,))
  model = resnet(section)
  mapping = open_clip.resnet_mapping(section, "vision_model.", open_clip.SEQUENTIAL_NAMES)
  ignore = rf"{COUNTERS}|fc_.*|llamacasual.*"
  got = apply(model, imported(mapping, model, theirs, x, "image", ignore=ignore), x, "image")
  agrees(got.mean(1, keepdims=True), arrays["out.image_encoder"])


def test_the_published_sizes():
  """MedVInT-TD's cut tower has 8,562,528 trained parameters; statistics are not trained."""
  model = resnet(open_clip.resnet_config((3, 4, 6)))
  leaves = abstract_params(model, jnp.zeros((1, 512, 512, 3)), "image")
  trained = [x.size for path, x in leaves.items() if not path.endswith(("/mean", "/var"))]
  assert sum(trained) == 8_562_528


def test_statistics_are_stored_and_have_no_gradients():
  x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
  norm = StoredBatchNorm()
  params = nn.unbox(norm.init(jax.random.key(1), x))
  params["params"] |= dict(mean=jnp.arange(4.0), var=jnp.full(4, 4.0))
  want = (x - jnp.arange(4.0)) / jnp.sqrt(4 + 1e-5)
  np.testing.assert_allclose(norm.apply(params, x), want, atol=1e-5)
  grads = jax.grad(lambda p: norm.apply(p, x).sum())(params)["params"]
  assert not grads["mean"].any() and not grads["var"].any()
  assert grads["bias"].any()


def test_a_sample_knows_nothing_of_its_batch():
  model = ModifiedResNet({"image": dict(size=(32, 32), channels=3)}, (1, 1), 4)
  x = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
  params = random_params(model, x, "image")
  assert apply(model, params, x, "image").shape == (2, 16, 32)
  np.testing.assert_allclose(
    apply(model, params, x, "image")[:1], apply(model, params, x[:1], "image"), atol=1e-5
  )
