import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.models.connectors.perceiver import PerceiverResampler


def resampler(**fields):
  return PerceiverResampler(**dict(num_latents=3, depth=1, heads=2, head_dim=4) | fields)


def media(m=2, frames=1, tokens=5):
  return jax.random.normal(jax.random.key(1), (2, m, frames, tokens, 8))


def init(model, x):
  return nn.unbox(jax.jit(model.init)(jax.random.key(0), x))


def apply(model, params, x):
  return jax.jit(model.apply)(params, x)


def test_any_number_of_tokens_gives_the_same_number_of_latents():
  model = resampler()
  params = init(model, media())
  for m, tokens in ((1, 1), (2, 5), (4, 7)):
    y = apply(model, params, media(m, tokens=tokens))
    assert y.shape == (2, m, 3, 8)
    assert jnp.isfinite(y).all()


def test_media_are_resampled_on_their_own():
  model, x = resampler(), media(3)
  params = init(model, x)
  y = apply(model, params, x)
  other = apply(model, params, x.at[:, 1].set(0))
  np.testing.assert_allclose(y[:, [0, 2]], other[:, [0, 2]], atol=1e-6)
  assert not jnp.allclose(y[:, 1], other[:, 1])


def test_the_order_of_visual_tokens_tells_nothing():
  model, x = resampler(), media()
  params = init(model, x)
  np.testing.assert_allclose(
    apply(model, params, x), apply(model, params, x[:, :, :, ::-1]), atol=1e-5
  )


def test_embeddings_tell_frames_and_places_apart():
  x = media(2, frames=2)
  framed, timed = resampler(max_frames=2), resampler(max_media=2)
  for model, swapped in ((framed, x[:, :, ::-1]), (timed, x[:, ::-1])):
    params = init(model, x)
    y, other = apply(model, params, x), apply(model, params, swapped)
    assert not jnp.allclose(y, other, atol=1e-3)
    assert not jnp.allclose(y, other[:, ::-1], atol=1e-3)


@pytest.mark.parametrize(
  ("fields", "shape", "message"),
  [
    ({"max_frames": 2}, (1, 3), "3 frames, but model.connector.max_frames is 2"),
    ({"max_media": 2}, (3, 1), "3 media a row, but model.connector.max_media is 2"),
  ],
)
def test_tables_that_are_too_short_are_named(fields, shape, message):
  with pytest.raises(ValueError, match=message):
    resampler(**fields).init(jax.random.key(0), media(*shape))


def _params(torch, depth, heads):
  """The peer's state dict as ours; its linear weights are [out, in]."""

  def layer(i):
    attn, mlp = f"layers.{i}.0", f"layers.{i}.1"
    split = lambda w: w.T.reshape(w.shape[1], heads, -1)
    key, value = np.split(torch[f"{attn}.to_kv.weight"], 2)
    out = torch[f"{attn}.to_out.weight"]
    norm = lambda name: {"scale": torch[f"{name}.weight"], "bias": torch[f"{name}.bias"]}
    return {
      "norm_latents": norm(f"{attn}.norm_latents"),
      "norm_media": norm(f"{attn}.norm_media"),
      "query": {"kernel": split(torch[f"{attn}.to_q.weight"])},
      "key": {"kernel": split(key)},
      "value": {"kernel": split(value)},
      "out": {"kernel": out.T.reshape(heads, -1, out.shape[0])},
      "mlp_norm": norm(f"{mlp}.0"),
      "mlp": {
        "wi": {"kernel": torch[f"{mlp}.1.weight"].T},
        "wo": {"kernel": torch[f"{mlp}.3.weight"].T},
      },
    }

  params = {
    "latents": torch["latents"],
    "norm": {"scale": torch["norm.weight"], "bias": torch["norm.bias"]},
    "layers": jax.tree.map(lambda *w: np.stack(w), *(layer(i) for i in range(depth))),
  }
  if "frame_embs" in torch:
    params["frame_embedding"] = torch["frame_embs"]
  if "media_time_embs" in torch:
    params["media_time_embedding"] = torch["media_time_embs"][:, 0]
  return {"params": jax.tree.map(jnp.asarray, params)}


@pytest.mark.parametrize("variant", ["plain", "defaults", "frame_media_embs"])
def test_parity_with_openflamingo(golden, variant):
  torch, arrays, config = golden("of_perceiver", variant)
  model = PerceiverResampler(
    config["num_latents"],
    config["depth"],
    config["heads"],
    config["dim_head"],
    max_frames=config.get("max_num_frames", 0),
    max_media=config.get("max_num_media", 0),
  )
  params = _params(torch, config["depth"], config["heads"])
  cases = [name.removeprefix("in.") for name in arrays if name.startswith("in.")]
  assert len(cases) >= 2
  for case in cases:
    x = jnp.asarray(arrays[f"in.{case}"])
    np.testing.assert_allclose(apply(model, params, x), arrays[f"out.y_{case}"], atol=1e-5)
