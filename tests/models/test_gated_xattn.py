import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.data.encode import MEDIA_RULES
from medflax.models.attention import media_mask
from medflax.models.fusion.gated_xattn import GatedXattn

BLOCK = GatedXattn(xattn_every=1, heads=2, head_dim=4).block(jnp.float32)


def inputs():
  """Text [1, 4, 8] of which each token sees fewer of three media, the last none."""
  x, media = (
    jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(1, 4, 8), (1, 3, 2, 6)])
  )
  mask = jnp.array([[[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]], bool)
  return x, media, mask


def init(gate=0.5):
  params = nn.unbox(jax.jit(BLOCK.init)(jax.random.key(0), *inputs()))
  opened = {name: jnp.full((1,), gate) for name in ("attn_gate", "mlp_gate")}
  return {"params": params["params"] | opened}


def test_the_gates_start_closed():
  params = nn.unbox(BLOCK.init(jax.random.key(0), *inputs()))
  assert params["params"]["attn_gate"] == params["params"]["mlp_gate"] == 0
  x, media, mask = inputs()
  np.testing.assert_array_equal(BLOCK.apply(params, x, media, mask)[0], x)


def test_text_sees_the_media_that_the_mask_allows():
  params, (x, media, mask) = init(), inputs()
  y, _ = BLOCK.apply(params, x, media, mask)
  for m in range(3):
    other, _ = BLOCK.apply(params, x, media.at[:, m].add(jnp.arange(6.0)), mask)
    changed = ~np.isclose(y, other, atol=1e-6).all(-1)
    np.testing.assert_array_equal(changed, mask[:, :, m])


def test_text_that_sees_no_media_passes_the_mlp_alone():
  params, (x, media, mask) = init(), inputs()
  y, _ = BLOCK.apply(params, x, media, mask)
  alone, kept = BLOCK.apply(params, x, None, None)
  assert kept is None
  np.testing.assert_array_equal(y[:, 3], alone[:, 3])
  assert not jnp.allclose(y[:, 0], alone[:, 0])


def test_the_cache_stands_for_the_media():
  params, (x, media, mask) = init(), inputs()
  y, kept = BLOCK.apply(params, x, media, mask)
  assert [part.shape for part in kept] == [(1, 2, 6, 4)] * 2
  again, new = BLOCK.apply(params, x, None, mask, [kept])
  np.testing.assert_allclose(again, y, atol=1e-6)
  assert new is None
  _, first = BLOCK.apply(params, x, media[:, :1], mask[:, :, :1])
  later, rest = BLOCK.apply(params, x, media[:, 1:], mask, [first])
  np.testing.assert_allclose(later, y, atol=1e-6)
  np.testing.assert_array_equal(rest.key, kept.key[:, :, first.key.shape[2] :])


def _params(torch, heads):
  """The peer's state dict as ours; its linear weights are [out, in]."""
  split = lambda w: w.T.reshape(w.shape[1], heads, -1)
  key, value = np.split(torch["attn.to_kv.weight"], 2)
  out = torch["attn.to_out.weight"]
  norm = lambda name: {"scale": torch[f"{name}.weight"], "bias": torch[f"{name}.bias"]}
  params = {
    "attn_gate": torch["attn_gate"],
    "mlp_gate": torch["ff_gate"],
    "attn_norm": norm("attn.norm"),
    "query": {"kernel": split(torch["attn.to_q.weight"])},
    "key": {"kernel": split(key)},
    "value": {"kernel": split(value)},
    "out": {"kernel": out.T.reshape(heads, -1, out.shape[0])},
    "mlp_norm": norm("ff.0"),
    "mlp": {
      "wi": {"kernel": torch["ff.1.weight"].T},
      "wo": {"kernel": torch["ff.3.weight"].T},
    },
  }
  return {"params": jax.tree.map(jnp.asarray, params)}


@pytest.mark.parametrize(
  ("variant", "rule"), [("immediate", "prev_image"), ("all_previous", "all_prev")]
)
def test_parity_with_openflamingo(golden, variant, rule):
  torch, arrays, config = golden("of_xattn", variant)
  block = GatedXattn(1, config["heads"], config["dim_head"]).block(jnp.float32)
  params, media = _params(torch, config["heads"]), jnp.asarray(arrays["in.media"])
  links = [MEDIA_RULES[rule](row) for row in arrays["in.loc"]]
  index, first = (jnp.asarray(np.stack(x)) for x in zip(*links, strict=True))
  ordinals = jnp.broadcast_to(jnp.arange(1, 4), media.shape[:2])
  mask = media_mask(index, first, ordinals)

  y, kept = block.apply(params, jnp.asarray(arrays["in.x"]), media, mask)
  # Where a token sees nothing and all previous images are asked for, the peer attends to every
  # image alike; here such a token gets nothing, as it does in the peer's other mode.
  same = np.asarray(mask.any(-1)) | (rule == "prev_image")
  assert same.sum() > 12
  np.testing.assert_allclose(np.asarray(y)[same], arrays["out.y"][same], atol=1e-5)

  # Decoding: the peer lets new tokens see what the last one saw.
  x = jnp.asarray(arrays["in.x_cached"])
  last = jnp.repeat(mask[:, -1:], x.shape[1], axis=1)
  y, _ = block.apply(params, x, None, last, [kept])
  same = np.asarray(last.any(-1)) | (rule == "prev_image")
  np.testing.assert_allclose(np.asarray(y)[same], arrays["out.y_cached"][same], atol=1e-5)
