"""Continues a text greedily with an imported language model.

python -m medflax.tools.generate IMPORTED "The chest X-ray shows" --max-new-tokens 48

IMPORTED is a folder that `medflax.tools.import_weights` has written from a causal language model
with its tokenizer. Text appears token by token; speed is told at the end.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from medflax.config import with_tuples
from medflax.data.tokenizer import Tokenizer, load_tokenizer
from medflax.inference import decode
from medflax.models import build_model
from medflax.pretrained import load_weights
from medflax.pretrained.checkpoint import read_json
from medflax.pretrained.leaves import abstract_leaves
from medflax.tools.import_weights import CONFIG, DTYPES, TOKENIZER, WEIGHTS
from medflax.utils import UserError, pick

REPLACEMENT = "\ufffd"  # what bytes decode to before the rest of their character is there


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """A model of text alone, with its parameters and tokenizer."""

  model: nn.Module
  params: dict[str, Any]
  tokenizer: Tokenizer
  max_length: int  # of prompt and continuation; 0 for any

  def encode(self, prompt: str) -> list[int]:
    """The prompt's tokens behind the one that begins a text, if there is such a one.

    Raises:
      UserError: if that makes no token at all.
    """
    bos = self.tokenizer.bos_id
    ids = ([] if bos is None else [bos]) + self.tokenizer.encode(prompt)
    if not ids:
      raise UserError("the prompt is empty")
    return ids

  def continued(self, ids: Sequence[int], max_new_tokens: int) -> Iterator[int]:
    """Greedy tokens after `ids`, up to and without the one that ends a text.

    Raises:
      UserError: if there are no places for so many, or less than one is wanted.
    """
    if max_new_tokens < 1:
      raise UserError(f"--max-new-tokens {max_new_tokens}: must be at least 1")
    size = len(ids) + max_new_tokens
    if self.max_length and size > self.max_length:
      raise UserError(f"{size} tokens with the prompt's; the model has {self.max_length} places")
    prompt = jnp.asarray([ids], jnp.int32)
    token, read = _prefill(self.model, self.params, prompt, max_new_tokens)
    for step in range(1, max_new_tokens + 1):
      if int(token[0, 0]) == self.tokenizer.eos_id:
        return
      yield int(token[0, 0])
      token, read = _step(self.model, self.params, token, read, step)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _prefill(model, params, tokens, max_new_tokens):
  nothing, positions = jnp.zeros_like(tokens), jnp.arange(tokens.shape[1])[None]
  batch = dict(tokens=tokens, positions=positions, segment_ids=jnp.ones_like(tokens))
  batch |= dict(media_index=nothing, media_first=nothing)
  logits, read = decode.read_prompts(model, params, batch, max_new_tokens)
  return jnp.argmax(logits, axis=-1), read


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _step(model, params, token, read, step):
  seen = (jnp.arange(read.room) < step)[None, None]
  logits, read = model.apply({"params": params}, token, read, seen, method="extend")
  return jnp.argmax(logits, axis=-1), read


def load(folder: pathlib.Path, dtype: str = "float32") -> LanguageModel:
  """The causal language model of an import.

  Args:
    dtype: of weights and computation, a name in `DTYPES`.

  Raises:
    UserError: if there is none, or no tokenizer.
  """
  number = np.dtype(pick(DTYPES, dtype, "dtype"))
  lm = with_tuples(read_json(folder / CONFIG).get("lm", {}))
  if lm.get("type") != "decoder":
    raise UserError(f"{folder / CONFIG}: is not of a causal language model")
  weights, leaves = load_weights(folder / WEIGHTS), abstract_leaves({"lm": lm})
  if {k: x.shape for k, x in weights.items()} != {k: x.shape for k, x in leaves.items()}:
    raise UserError(f"{folder}: is no model of text alone; import it without --xattn-every")
  tokenizer = load_tokenizer(str(folder / TOKENIZER))
  placed = {path: jnp.asarray(np.asarray(x), number) for path, x in weights.items()}
  model = build_model({"lm": lm, "dtype": dtype, "remat": "none"})
  return LanguageModel(
    model=model,
    params=traverse_util.unflatten_dict(placed, sep="/"),
    tokenizer=tokenizer,
    max_length=model.lm.learned_positions and model.lm.learned_positions - model.lm.position_offset,
  )


def texts(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
  """The text of tokens bit by bit, characters whole."""
  seen, done = [], ""
  for token in ids:
    seen.append(token)
    text = tokenizer.decode(seen)
    if not text.endswith(REPLACEMENT):
      yield text[len(done) :]
      done = text
  yield tokenizer.decode(seen)[len(done) :]


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = argparse.ArgumentParser(
    prog="python -m medflax.tools.generate", description="Continues a text greedily."
  )
  parser.add_argument("folder", type=pathlib.Path, help="what import_weights has written")
  parser.add_argument("prompt")
  parser.add_argument("--max-new-tokens", type=int, default=64)
  parser.add_argument("--dtype", default="float32", help=f"one of: {', '.join(DTYPES)}")
  flags = parser.parse_args(argv)
  try:
    lm = load(flags.folder, flags.dtype)
    times = [time.perf_counter()]

    def timed(ids: Iterable[int]) -> Iterator[int]:
      for token in ids:
        times.append(time.perf_counter())
        yield token

    tokens = timed(lm.continued(lm.encode(flags.prompt), flags.max_new_tokens))
    print(flags.prompt, end="", flush=True)
    for text in texts(lm.tokenizer, tokens):
      print(text, end="", flush=True)
    print()
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  _tell_speed(times)
  return 0


def _tell_speed(times: Sequence[float]) -> None:
  """On stderr: `times` are of the start and of every token, the second of which compiles."""
  start, *ends = times
  told = f"{len(ends)} tokens"
  if ends:
    told += f", the first after {ends[0] - start:.1f} s"
  if len(ends) > 3:
    told += f", then {(len(ends) - 2) / (ends[-1] - ends[1]):.1f} tokens/s"
  print(told, file=sys.stderr)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
