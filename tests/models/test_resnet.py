import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medflax.models.vision.resnet import ModifiedResNet, StoredBatchNorm
from medflax.pretrained import open_clip
from tests.golden_cases import vision
from tests.golden_cases.base import Case, abstract_leaves
from tests.golden_cases.vision import apply, build, random_params


def test_parity_with_pmc_clip(golden_folder):
  case = Case(golden_folder("medvint"), "pmc_clip_modified_resnet")
  results = list(vision.modified_resnet(case))
  assert len(results) == 6
  assert not [result for result in results if not result.passed]


def test_the_published_sizes():
  """MedVInT-TD's cut tower has 8,562,528 trained parameters; statistics are not trained."""
  model = build(ModifiedResNet, open_clip.resnet_config((3, 4, 6)))
  leaves = abstract_leaves(model, jnp.zeros((1, 512, 512, 3)), "image")
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
  params["params"] = jax.tree_util.tree_map_with_path(
    lambda path, w: jnp.abs(w) if path[-1].key == "var" else w, params["params"]
  )
  y = apply(model, params, x, "image")
  assert y.shape == (2, 16, 32)
  np.testing.assert_allclose(y[:1], apply(model, params, x[:1], "image"), rtol=1e-4, atol=1e-4)
