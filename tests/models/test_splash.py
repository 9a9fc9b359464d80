import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.models.attention import ATTENTIONS, UNBOUNDED, Seen, causal_mask
from medflax.models.fusion.gated_xattn import GatedXattn
from tests.models.test_decoder_media import decoder, text

ROOT = pathlib.Path(__file__).resolve().parents[2]
T = 130  # not a multiple of the kernel's blocks


def arrays(t=T, s=T, heads=4, kv_heads=2, head_dim=8):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = [(2, t, heads, head_dim), *[(2, s, kv_heads, head_dim)] * 2, (2, t, heads, head_dim)]
  return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def packed(window=UNBOUNDED, windows=(UNBOUNDED,)):
  """Two rows of documents, the second with padding behind them."""
  places = jnp.arange(T)
  segments = jnp.stack([1 + places // 50, jnp.where(places < 60, 1 + places // 40, 0)])
  mask = causal_mask(places, segments, places, segments)
  mask &= places[:, None] - places < window
  return Seen(mask, (segments, segments), True, windows, jnp.asarray(window))


def one_medium():
  """Tokens that see a medium each, or none, of three with twenty latents."""
  medium = jnp.stack([jnp.arange(T) // 40, jnp.zeros(T, jnp.int32)])
  latent = jnp.broadcast_to(jnp.arange(1, 4).repeat(20), (2, 60))
  return Seen((medium[:, :, None] == latent[:, None]), (medium, latent))


def all_of_it():
  """Two media whose patches all see each other."""
  ones = jnp.ones((2, T), jnp.int32)
  return Seen(None, (ones, ones))


CASES = {
  "media themselves": (all_of_it, T, 0.0),
  "packed": (packed, T, 0.0),
  "capped": (packed, T, 2.0),
  "window": (lambda: packed(7, (7, UNBOUNDED)), T, 0.0),
  "one of many windows": (lambda: packed(UNBOUNDED, (7, UNBOUNDED)), T, 0.0),
  "media": (one_medium, 60, 0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_splash_is_attention(case):
  """Outputs and gradients, grouped queries, and zeros where nothing is seen."""
  make, s, softcap = CASES[case]
  seen, (*inputs, weights) = make(), arrays(s=s)

  def run(name):
    attend = lambda *x: ATTENTIONS[name](*x, seen, scale=0.5, softcap=softcap)
    out, back = jax.vjp(attend, *inputs)
    return out, *back(weights)

  for ours, theirs in zip(
    jax.jit(run, static_argnums=0)("splash_interpreted"), run("xla"), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


PROGRAM = """
import flax.linen as nn, jax, numpy as np
from medflax.models.attention import ATTENTIONS
from medflax.parallel import sharding
from medflax.parallel.mesh import make_mesh
from tests.models.test_splash import arrays, packed

*inputs, weights = arrays()
attend = lambda *x: ATTENTIONS["splash_interpreted"](*x, packed(), scale=None)
grads = lambda: jax.jit(jax.grad(lambda *x: (attend(*x) * weights).sum(), (0, 1, 2)))(*inputs)
alone, ones = grads(), dict.fromkeys(sharding.AXES, 1)
for sizes in ({"data": 2, "tensor": 2}, {"sequence": 2, "fsdp": 2}):
  with jax.set_mesh(make_mesh(ones | sizes)), nn.logical_axis_rules(sharding.RULES):
    for ours, theirs in zip(grads(), alone):
      np.testing.assert_allclose(ours, theirs, atol=2e-5)
"""


@pytest.mark.slow
def test_splash_on_four_devices_is_splash_on_one():
  fake = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(ROOT)}
  subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ | fake, cwd=ROOT, check=True)


@pytest.mark.gpu
def test_cudnn_is_attention():
  inputs = [x.astype(jnp.bfloat16) for x in arrays(head_dim=64)]
  outs = [
    jax.jit(lambda *x, name=name: ATTENTIONS[name](*x, packed(), scale=None))(*inputs[:3])
    for name in ("cudnn", "xla")
  ]
  np.testing.assert_allclose(*(x.astype(jnp.float32) for x in outs), atol=2e-2)


def test_what_only_a_mask_tells_is_left_to_xla():
  *inputs, _ = arrays(t=3, s=3)
  seen = Seen(jnp.ones((2, 3, 3), bool))
  outs = [ATTENTIONS[name](*inputs, seen, scale=None) for name in ("splash", "xla")]
  np.testing.assert_array_equal(*outs)


@pytest.mark.slow
@pytest.mark.parametrize("windows", [(), (3, 0)])
def test_a_decoder_with_splash_is_the_decoder(windows):
  tokens = jnp.arange(12).reshape(2, 6) % 5
  inputs, segments = text(tokens), jnp.ones_like(tokens)
  plain, fast = (decoder(windows=windows, attention=name) for name in ("xla", "splash_interpreted"))
  params = nn.unbox(plain.init(jax.random.key(0), *inputs, None, None))
  run = lambda m: lambda p: m.apply(p, *inputs, None, None, segments=segments)[0]
  np.testing.assert_allclose(jax.jit(run(fast))(params), jax.jit(run(plain))(params), atol=1e-5)
  assert "pallas_call" in str(jax.make_jaxpr(run(fast))(params))


@pytest.mark.slow
def test_a_gated_block_with_splash_is_the_block():
  shapes = ((2, 5, 8), (2, 3, 2, 6))
  x, media = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
  mask = (jnp.arange(5)[:, None] // 2 == jnp.arange(3))[None].repeat(2, 0)
  mask = mask.at[1].set(False)
  fusion = GatedXattn(1, heads=2, head_dim=4)
  plain, fast = (fusion.block(jnp.float32, name, True) for name in ("xla", "splash_interpreted"))
  params = nn.unbox(plain.init(jax.random.key(0), x, media, mask))
  params["params"]["attn_gate"] = jnp.ones(1)
  run = lambda block: jax.jit(lambda p: block.apply(p, x, media, mask)[0])(params)
  np.testing.assert_allclose(run(fast), run(plain), atol=1e-5)
