"""What is read once for many questions changes no answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze, meta

from medflax.data.documents import Episode, Media, Prompt, Sample, Source
from medflax.defaults import base_config
from medflax.evals.answering import Answerer
from medflax.evals.asking import Asker
from medflax.inference import decode
from medflax.inference.decoding import make_decoder
from medflax.inference.features import MediaFeatures, embed
from medflax.models import build_model

SIDE = 8


def make_model(vocab_size):
  image = {"size": (SIDE, SIDE), "patch": (4, 4), "channels": 3}
  config = dict(
    tower=dict(type="vit", inputs={"image": image}, width=16, depth=1, heads=2, mlp_width=16),
    connector=dict(type="perceiver", num_latents=2, depth=1, heads=2, head_dim=8),
    fusion=dict(type="gated_xattn", xattn_every=1, heads=2, head_dim=8),
    lm=dict(type="decoder", vocab_size=vocab_size, width=32, depth=2, heads=2, kv_heads=1),
  )
  config["lm"]["mlp_width"] = 32
  model = build_model(freeze(config | dict(dtype="float32", remat="none")))
  tokens, media = jnp.ones((1, 4), jnp.int32), {"image": jnp.zeros((1, 1, SIDE, SIDE, 3))}
  ordinal = {"image": jnp.ones((1, 1), jnp.int32)}
  made = jax.jit(model.init)(jax.random.key(0), media, tokens, tokens, media_ordinal=ordinal)
  leaves, tree = jax.tree.flatten(meta.unbox(made)["params"])
  rng = np.random.default_rng(0)  # so large that text and media both change what is said
  draw = lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32)
  return model, jax.tree.unflatten(tree, [draw(leaf) for leaf in leaves])


def sample(name, choices=()):
  rng = np.random.default_rng(sum(map(ord, name)))
  media = (Media(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)),)
  source = Source("d", "1", "val")
  question = f"What is seen in the picture {name}?"
  return Sample(name, media, question, "a thing", source, choices=choices, group=name)


@pytest.mark.parametrize("rule", ["prev_image", "next_image", "all_prev"])
@pytest.mark.parametrize("decoding", [{}, {"type": "beam", "num_beams": 2}], ids=["greedy", "beam"])
def test_a_shared_support_is_read_once_and_answers_are_the_same(
  tokenizer, rule, decoding, monkeypatch
):
  model, params = make_model(tokenizer.vocab_size)
  data = base_config("x", "y").data
  data.media_rule = rule
  supports = [tuple(sample(f"{kind}{i}") for i in range(3)) for kind in "ab"]
  queries = [sample(f"q{i}", ("yes", "no", "left lung")) for i in range(5)]
  episodes = [Episode(query, supports[i % 2]) for i, query in enumerate(queries + queries)]
  read, replies = [], {}
  plain = decode.read_prefix
  monkeypatch.setattr(decode, "read_prefix", lambda *args: read.append(1) or plain(*args))
  for batch_size in (2, 32):
    features = MediaFeatures(lambda media: embed(model, params, media), 4)
    asker = Asker(tokenizer, Prompt(), data, features, None)
    questions = [asker.trial(episode).question for episode in episodes]
    features.finish()
    answerer = Answerer(
      model,
      tokenizer,
      Prompt(),
      inline=False,
      put=lambda batch: jax.tree.map(jnp.asarray, batch),
      decoder=make_decoder({"max_new_tokens": 6, **decoding}),
      batch_size=batch_size,
    )
    said = {}
    batches = answerer.batches(questions)
    for batch, answers in answerer.replies(batches, questions, features, params):
      said |= zip(batch.members, answers, strict=True)
    replies[batch_size] = [said[i] for i in range(len(questions))]
  assert len(read) == len(supports)
  for shared, whole in zip(replies[2], replies[32], strict=True):
    assert (shared.text, shared.stop) == (whole.text, whole.stop)
    np.testing.assert_allclose(shared.logprobs, whole.logprobs, atol=1e-3)
  assert len({reply.logprobs for reply in replies[32]}) > len(supports)  # media matter
