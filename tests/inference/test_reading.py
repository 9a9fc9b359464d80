"""Prompts read once, whole or behind a beginning that all share, against whole rows.

The reference is one forward pass over each row, without padding in front and without a cache.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax import peft
from medflax.data.encode import MEDIA_RULES
from medflax.inference.decode import read_prefix, read_prompts
from medflax.inference.decoding import Beam, Greedy
from medflax.inference.likelihood import score
from medflax.inference.stops import stop_at
from medflax.models.fusion.fused_head import FusedHead
from medflax.models.fusion.gated_xattn import GatedXattn
from medflax.models.fusion.inline import Inline
from medflax.models.language.decoder import Decoder
from medflax.models.vlm import VLM
from medflax.utils import UserError

VOCAB, WIDTH, LATENTS, LENGTH = 13, 8, 2, 32
SIZES = dict(vocab_size=VOCAB, width=WIDTH, depth=2, heads=4, kv_heads=2, mlp_width=8)
XATTN = GatedXattn(2, heads=2, head_dim=4)
ALIBI = dict(rope_theta=0.0, alibi_bias_max=8.0)
LEARNED = dict(rope_theta=0.0, learned_positions=64)
# The decoder's fields, which media a token sees ("": media stand between the tokens), an adapter.
FORMS = {
  "LLaMA, previous image": (dict(fusion=XATTN), "prev_image", {}),
  "MPT, next image": (dict(fusion=XATTN, **ALIBI), "next_image", {}),
  "windows, all images": (dict(fusion=XATTN, windows=(4, 0)), "all_prev", {}),
  "GPT-2, inline": (dict(fusion=Inline(), **LEARNED, mlp="plain"), "", {}),
  "Gemma, both ways": (dict(fusion=Inline(True), windows=(3, 0), attn_softcap=5.0), "", {}),
  "prompt, windows": (
    dict(windows=(5, 0)), "", dict(type="prompt", target="lm/embedding", length=3),
  ),
  "prefix, ALiBi": (ALIBI, "", dict(type="prefix", target=".*/attn/key/kernel", length=2)),
}  # fmt: skip


@functools.cache
def make(form):
  """The model and weights none of which is zero."""
  fields, _, adapter = FORMS[form]
  model = VLM(None, None, Decoder(**SIZES | fields))
  args, kwargs = arguments(batch([document(form, 0)], LENGTH, left=False))
  init = functools.partial(model.init, method="_predict", **kwargs)
  rng = np.random.default_rng(0)
  draw = lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32)
  params = jax.tree.map(draw, jax.eval_shape(init, jax.random.key(0), *args))["params"]
  if adapter:
    params = jax.tree.map(draw, peft.add(jax.random.key(1), params, {"p": adapter}))
  return model, nn.unbox(params)


def document(form, seed, start=None):
  """Text with two media, behind those of another document if there is a start."""
  rng = np.random.default_rng((seed, 7))
  fields, rule, _ = FORMS[form]
  inline, media = isinstance(fields.get("fusion"), Inline), 2 if "fusion" in fields else 0
  marks = [0] * rng.integers(1, 4)
  for _ in range(media):
    marks += [*range(1, LATENTS + 1 if inline else 2), *[0] * rng.integers(2, 5)]
  row = {
    "marks": np.array(marks),
    "tokens": rng.integers(1, VOCAB, len(marks)),
    "features": rng.normal(size=(media, LATENTS, WIDTH)),
  }
  if start:
    row = {key: np.concatenate([start[key], x]) for key, x in row.items()}
  index, first = MEDIA_RULES[rule or "prev_image"](row["marks"] == 1)
  soft = row["marks"] if inline else 0 * row["marks"]
  return row | {"media_index": index, "media_first": first, "soft_index": soft}


def followed(row, tokens):
  """The row with more tokens, which see what the last one saw."""
  last = {key: x[-1:] for key, x in row.items() if key not in ("features", "tokens")}
  more = {key: np.repeat(x, len(tokens)) for key, x in last.items()}
  more |= {"tokens": np.array(tokens, int), "soft_index": np.zeros(len(tokens), int)}
  return row | {key: np.concatenate([row[key], x]) for key, x in more.items()}


def batch(rows, length, start=0, left=True):
  """Rows from token `start` on, with the media from there on, as `read_prompts` wants them."""
  text = ("tokens", "media_index", "media_first", "soft_index")
  keys = (*text, "positions", "segment_ids")
  out = {key: np.zeros((len(rows), length), np.int32) for key in keys}
  before = [(row["marks"][:start] == 1).sum() for row in rows]
  counts = [len(row["features"]) - n for row, n in zip(rows, before, strict=True)]
  if any(counts):
    out["features"] = np.zeros((len(rows), max(counts), LATENTS, WIDTH), np.float32)
    out["media_ordinal"] = np.zeros((len(rows), max(counts)), np.int32)
  for r, (row, skipped, count) in enumerate(zip(rows, before, counts, strict=True)):
    size = len(row["tokens"]) - start
    here = np.s_[r, length - size :] if left else np.s_[r, :size]
    for key in text:
      out[key][here] = row[key][start:]
    out["positions"][here], out["segment_ids"][here] = start + np.arange(size), 1
    if count:
      out["features"][r, :count] = row["features"][skipped:]
      out["media_ordinal"][r, :count] = skipped + 1 + np.arange(count)
  return jax.tree.map(jnp.asarray, out)


def arguments(inputs):
  """Of `VLM._predict`."""
  ordinal = {"media": inputs["media_ordinal"]} if "features" in inputs else {}
  names = ("media_first", "soft_index", "positions", "segment_ids")
  options = {name: inputs[name] for name in names} | {"media_ordinal": ordinal}
  return (inputs.get("features"), inputs["tokens"], inputs["media_index"]), options


@functools.cache
def compiled(function, form, **options):
  """`function` of the model and its weights, compiled in a hurry; its results are NumPy's."""
  model, params = make(form)  # weights that are arguments are not folded
  run = functools.partial(function, model, **options)
  program = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})
  return lambda *args, **kwargs: jax.device_get(program(params, *args, **kwargs))


def predict(model, params, inputs):
  args, kwargs = arguments(inputs)
  return model.apply({"params": params}, *args, **kwargs, method="_predict")


def logits(form, row):
  """Of every token of a row, in one pass without a cache."""
  inputs = batch([row], LENGTH, left=False)
  return compiled(predict, form)(inputs)[0, : len(row["tokens"])]


def extend(model, params, *args):
  return model.apply({"params": params}, *args, method="extend")


def log_softmax(x):
  x = x - x.max(axis=-1, keepdims=True)
  return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def close(one, other):
  np.testing.assert_allclose(one, other, atol=2e-5)


PADDED, REST = 3, 16  # padding before the beginning that all share; places of the rest


def prompts(form, shared):
  """Three rows of different lengths that begin alike, as they are and as they were read."""
  start = document(form, 0)
  rows = [document(form, seed, start) for seed in (1, 2, 3)]
  if not shared:
    read = compiled(read_prompts, form, length=4, branches=3)
    return rows, read(batch(rows, LENGTH))
  # Where text sees the next image, what follows the last one of the beginning is not shared.
  alike = rows[0]["media_index"] <= len(start["features"])
  size = int(alike[: len(start["tokens"])].sum())
  start = {key: x[:size] if key != "features" else x for key, x in rows[0].items()}
  start["features"] = start["features"][: (start["marks"] == 1).sum()]
  prefix = compiled(read_prefix, form)(batch([start], size + PADDED))
  read = compiled(read_prompts, form, length=4, branches=3)
  return rows, read(batch(rows, REST, size), prefix=prefix)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_reading_extending_and_weighing_are_whole_rows(form, shared):
  rows, (last, read) = prompts(form, shared)
  for row, got in zip(rows, last, strict=True):
    close(got[0], logits(form, row)[-1])

  new = np.random.default_rng(9).integers(1, VOCAB, (3, 4), dtype=np.int32)
  want = [logits(form, followed(row, tokens))[-4:] for row, tokens in zip(rows, new, strict=True)]
  causal = np.tri(4, dtype=bool)[None]
  go_on = compiled(extend, form)
  close(go_on(new, read, causal)[0], want)
  after, steps = read, []
  for i in range(4):
    out, after = go_on(new[:, i : i + 1], after, causal[:, i : i + 1])
    steps.append(out)
  close(np.concatenate(steps, axis=1), want)

  candidates = np.array(
    [[[4, 2, -1], [3, 1, 5]], [[6, -1, -1], [4, 2, 1]], [[1, 1, 1], [2, 3, -1]]]
  )
  found = compiled(score, form)(last, read, candidates)
  for r, c in np.ndindex(3, 2):
    tokens = candidates[r, c][candidates[r, c] >= 0]
    out = log_softmax(logits(form, followed(rows[r], tokens))[-len(tokens) - 1 : -1])
    np.testing.assert_allclose(found[r, c], out[np.arange(len(tokens)), tokens].sum(), atol=1e-4)


@pytest.mark.parametrize("form", ["MPT, next image", "Gemma, both ways"])
def test_generation_is_that_of_uncached_passes(form):
  rows, read = prompts(form, True)
  lengths = np.array([len(row["tokens"]) for row in rows])
  options = dict(stops=stop_at([0]), pad_id=0, prompt_lengths=lengths)
  greedy = np.asarray(Greedy(4).generate(*make(form), *read, **options).tokens)
  beam = Beam(4, num_beams=3, length_penalty=0.0).generate(*make(form), *read, **options)
  for row, tokens, best in zip(rows, greedy, np.asarray(beam.tokens), strict=True):
    out = logits(form, followed(row, tokens))[-5:-1]
    ends = np.flatnonzero(tokens == 0)
    size = ends[0] + 1 if len(ends) else 4
    np.testing.assert_array_equal(out.argmax(-1)[:size], tokens[:size])
    assert best.tolist() == beam_search(form, row)


def beam_search(form, row):
  """Three beams of four tokens by whole rows; the best sum of log-probabilities."""
  running, ended = [((), 0.0)], []
  for _ in range(4):
    options = []
    for tokens, total in running:
      out = log_softmax(logits(form, followed(row, tokens))[-1])
      options += [((*tokens, t), total + float(x)) for t, x in enumerate(out)]
    options = sorted(options, key=lambda option: -option[1])[:6]
    ended += [option for option in options[:3] if option[0][-1] == 0]
    running = [option for option in options if option[0][-1] != 0][:3]
  best = max(ended + running, key=lambda option: option[1])[0]
  return [*best, *[0] * (4 - len(best))]


def test_the_beginning_is_read_as_one_row_and_never_copied():
  _, (_, read) = prompts("LLaMA, previous image", True)
  first, rest, room = (jax.tree.leaves(part)[0].shape[1] for part in read.parts)
  assert (first, rest, room) == (1, 3, 3)


def test_a_beginning_without_media_and_a_rest_without_media():
  form = "windows, all images"
  start = {key: x[:1] for key, x in document(form, 0).items()} | {
    "features": np.zeros((0, LATENTS, WIDTH))
  }
  row = document(form, 1, start)
  prefix = read_prefix(*make(form), batch([start], 1))
  out, _ = read_prompts(*make(form), batch([row] * 2, REST, 1), 1, prefix)
  close(out[1, 0], logits(form, row)[-1])
  media = document(form, 2)
  row = followed(media, [3, 1, 4])
  prefix = read_prefix(*make(form), batch([media], LENGTH))
  out, _ = read_prompts(*make(form), batch([row] * 2, REST, len(media["tokens"])), 1, prefix)
  close(out[1, 0], logits(form, row)[-1])


def test_too_little_room_is_told():
  form = "LLaMA, previous image"
  _, (_, read) = prompts(form, False)
  read = jax.tree.map(jnp.asarray, read)
  with pytest.raises(ValueError, match="13 new tokens, but room for 12"):
    extend(*make(form), jnp.ones((3, 1), jnp.int32), read, jnp.ones((1, 1, 13), bool))


def test_equal_shapes_share_a_program():
  form = "LLaMA, previous image"
  start, more = document(form, 0), document(form, 1)
  read = lambda row: read_prompts(*make(form), batch([row] * 2, LENGTH), 2)
  read(start)
  before = read_prompts._cache_size()
  read(more)
  assert read_prompts._cache_size() == before


def test_a_fused_head_continues_nothing():
  model = VLM(None, None, Decoder(**SIZES, fusion=FusedHead(8, heads=2, mlp_width=8)))
  with pytest.raises(UserError, match=r"objective\.type=masked"):
    read_prompts(model, {}, batch([document("LLaMA, previous image", 0)], LENGTH), 4)
