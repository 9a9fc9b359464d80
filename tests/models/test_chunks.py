import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.models import build_model, model_inputs
from medflax.models.chunks import LogitSums
from medflax.train_step import all_targets, cross_entropy, summed_loss

VOCAB, LENGTH = 11, 10


@pytest.fixture(scope="module", params=["tied", "head"])
def setting(request):
  lm = dict(type="decoder", vocab_size=VOCAB, width=8, depth=1, heads=2, kv_heads=2, mlp_width=8)
  lm |= {"tie_embeddings": request.param == "tied", "head_bias": request.param == "head"}
  model = build_model({"lm": lm, "dtype": "float32", "remat": "none"})
  rng = np.random.default_rng(0)
  batch = {
    "tokens": rng.integers(0, VOCAB, (2, LENGTH)),
    "loss_mask": rng.integers(0, 2, (2, LENGTH)).astype(np.float32),
    "segment_ids": np.sort(rng.integers(0, 3, (2, LENGTH)), axis=1),
    "media_index": np.zeros((2, LENGTH), int),
  }
  batch = {k: jnp.asarray(v) for k, v in batch.items()}
  args, kwargs = model_inputs(batch)
  return model, model.init(jax.random.key(0), *args, **kwargs)["params"], batch


def losses(params, model, batch, num_tokens=None):
  args, kwargs = model_inputs(batch)
  if num_tokens is None:
    return cross_entropy(model.apply({"params": params}, *args, **kwargs), batch, 0.1)
  of = lambda logits, rows: summed_loss(logits, *rows, 0.1)
  sums = LogitSums(of, all_targets(batch, 1), num_tokens)
  return model.apply({"params": params}, *args, sums=sums, **kwargs)


@pytest.mark.parametrize("num_tokens", [3, 5, LENGTH])  # with places to fill, without, all at once
def test_sums_over_chunks_are_those_of_all_logits(setting, num_tokens):
  model, params, batch = setting
  of = lambda **options: jax.jit(
    jax.value_and_grad(functools.partial(losses, model=model, batch=batch, **options), has_aux=True)
  )
  (whole, logged), grads = of()(params)
  (chunked, same), same_grads = of(num_tokens=num_tokens)(params)
  np.testing.assert_allclose(chunked, whole, rtol=1e-6)
  np.testing.assert_allclose(same["loss"], logged["loss"], rtol=1e-6)
  assert same["accuracy"] == logged["accuracy"]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), same_grads, grads
  )


class Head(nn.Module):
  """A linear map to a large vocabulary, and its loss."""

  vocab: int
  num_tokens: int

  @nn.compact
  def __call__(self, x, targets):
    of = lambda logits, rows: summed_loss(logits, *rows, 0.0)[0]
    head = lambda module, x: nn.Dense(self.vocab, use_bias=False, name="head")(x)
    rows = (targets, jnp.ones_like(x[..., 0]))
    return LogitSums(of, rows, self.num_tokens).over(self, head, x)


def test_a_large_vocabulary_is_never_in_memory_at_once():
  vocab, length, width = 2**18, 512, 8
  x = jax.ShapeDtypeStruct((1, length, width), jnp.float32)
  targets = jax.ShapeDtypeStruct((1, length), jnp.int32)
  params = {"params": {"head": {"kernel": jax.ShapeDtypeStruct((width, vocab), jnp.float32)}}}

  def peak(num_tokens):
    compiled = jax.jit(jax.grad(Head(vocab, num_tokens).apply)).lower(params, x, targets).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert 8 * peak(16) < peak(0)
