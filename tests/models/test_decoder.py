import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.models.attention import causal_mask
from medflax.models.fusion.gated_xattn import GatedXattn
from medflax.models.language.decoder import Decoder

TOKENS = jax.random.randint(jax.random.key(1), (2, 6), 0, 11)
XATTN = GatedXattn(xattn_every=2, heads=2, head_dim=4)


def decoder(**fields):
  shape = dict(vocab_size=11, width=8, depth=2, heads=4, kv_heads=2, mlp_width=12)
  return Decoder(**shape | fields)


def inputs(tokens=TOKENS, offset=0):
  """Everything but the parameters for text alone, one document a row."""
  slots, ids = jnp.arange(tokens.shape[1]), jnp.ones_like(tokens)
  positions = jnp.broadcast_to(slots + offset, tokens.shape)
  return tokens, positions, causal_mask(slots, ids, slots, ids), None, None


def init(model):
  return nn.unbox(jax.jit(model.init)(jax.random.key(0), *inputs()))


def logits(model, params, *args, **kwargs):
  return jax.jit(model.apply)(params, *(args or inputs()), **kwargs)[0]


def test_logits_are_float32_and_causal():
  model = decoder(dtype=jnp.bfloat16)
  params = init(model)
  y = logits(model, params)
  assert y.shape == (2, 6, 11)
  assert y.dtype == jnp.float32
  other = logits(model, params, *inputs(TOKENS.at[:, 3].set((TOKENS[:, 3] + 1) % 11)))
  np.testing.assert_array_equal(y[:, :3], other[:, :3])
  assert (y[:, 3:] != other[:, 3:]).any(-1).all()


def test_only_distances_between_positions_matter():
  model = decoder()
  params = init(model)
  far = logits(model, params, *inputs(offset=1000))
  np.testing.assert_allclose(logits(model, params), far, atol=1e-4)


def test_grouped_queries_share_keys_and_values():
  """A decoder of as many key heads as query heads, each repeated, is the same."""
  grouped, full = decoder(kv_heads=2), decoder(kv_heads=4)
  params = init(grouped)
  attn = params["params"]["groups"]["layer_0"]["attn"]
  assert attn["query"]["kernel"].shape == (2, 8, 4, 2)
  assert attn["key"]["kernel"].shape == attn["value"]["kernel"].shape == (2, 8, 2, 2)
  repeated = jax.tree_util.tree_map_with_path(
    lambda path, w: jnp.repeat(w, 2, axis=-2) if {"key", "value"} & _names(path) else w, params
  )
  np.testing.assert_allclose(logits(grouped, params), logits(full, repeated), atol=1e-5)


def _names(path):
  return {key.key for key in path}


def test_a_tied_head_is_the_embedding():
  model = decoder(tie_embeddings=True)
  params = init(model)
  assert "head" not in params["params"]
  head = {"head": {"kernel": params["params"]["embedding"].T}}
  untied = {"params": params["params"] | head}
  assert jax.tree.structure(untied) == jax.tree.structure(init(decoder()))
  np.testing.assert_allclose(logits(model, params), logits(decoder(), untied), atol=1e-6)


@pytest.mark.parametrize(
  ("depth", "every", "groups", "tail"), [(4, 2, 2, 0), (5, 2, 2, 1), (1, 2, 0, 1)]
)
def test_a_gated_block_before_every_nth_layer(depth, every, groups, tail):
  fusion = GatedXattn(xattn_every=every, heads=2, head_dim=4)
  params = init(decoder(depth=depth, fusion=fusion))["params"]
  depths = {
    name: len(jax.tree.leaves(params[name])[0]) for name in ("groups", "tail") if name in params
  }
  assert depths == {name: n for name, n in (("groups", groups), ("tail", tail)) if n}
  if groups:
    assert set(params["groups"]) == {"xattn", *(f"layer_{i}" for i in range(every))}
  if tail:
    assert set(params["tail"]) == {"layer_0"}


def test_the_block_stands_before_the_last_layer_of_its_group():
  media = jax.random.normal(jax.random.key(2), (2, 1, 3, 6))
  model = decoder(fusion=XATTN)
  args = (*inputs()[:3], media, jnp.ones((2, 6, 1), bool))
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), *args))
  group = params["params"]["groups"]
  group["xattn"]["attn_gate"] = jnp.ones((1, 1))
  # With layer_1 silent media reach the logits only by what the block adds to the stream; with
  # layer_0 changed too, what the block reads changes, so it stands after layer_0.
  caches = jax.jit(lambda p: model.apply(p, *args, keep=True))(params)[1]["groups"]
  other = jax.tree.map(lambda w: w, params)
  other["params"]["groups"]["xattn"]["attn_gate"] = jnp.zeros((1, 1))
  closed = jax.jit(lambda p: model.apply(p, *args, keep=True))(other)[1]["groups"]
  np.testing.assert_array_equal(caches["layer_0"].key, closed["layer_0"].key)
  assert not jnp.allclose(caches["layer_1"].key, closed["layer_1"].key)


@pytest.mark.parametrize("policy", ["full", "dots"])
def test_remat_changes_no_gradient(policy):
  loss = lambda model: lambda p: (model.apply(p, *inputs())[0] ** 2).mean()
  params = init(decoder())
  one, other = (jax.jit(jax.grad(loss(decoder(remat=r))))(params) for r in ("none", policy))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)
