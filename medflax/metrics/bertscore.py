"""BERTScore (Zhang et al. 2020): how well the tokens of two answers match in a BERT's eyes.

The encoder is ours, its weights are a Hugging Face folder's; numbers are those of the package
bert-score without rescaling, and without torch.
"""

import collections
import functools
import itertools
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Int

from medflax.models.language.encoder import Encoder
from medflax.pretrained import hf_encoders
from medflax.pretrained.checkpoint import read_json
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.mapping import to_ours
from medflax.utils import UserError

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of a prediction and a reference

NAMES = ("precision", "recall", "f1")
_EMPTY = 2  # tokens of an empty text: the first and the last
_BUCKET = 32  # lengths are rounded up to its multiples: so many programs are compiled


def greedy_cosine(
  ours: Float[Array, "b t d"],
  our_weights: Float[Array, "b t"],
  our_lengths: Int[Array, " b"],
  theirs: Float[Array, "b s d"],
  their_weights: Float[Array, "b s"],
  their_lengths: Int[Array, " b"],
) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, " b"]]:
  """Every token with the most similar one of the other text: precision, recall, F1 of `ours`.

  As in bert-score's `greedy_cos_idf`: where there is padding it counts as a token of similarity
  0; a text of two tokens is an empty one, and scores 0, as does one without any weight.

  Args:
    our_weights: of each token in the mean; they need not add up to 1.
    our_lengths: tokens before the padding.
  """
  unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
  ours_seen = jnp.arange(ours.shape[1]) < our_lengths[:, None]
  theirs_seen = jnp.arange(theirs.shape[1]) < their_lengths[:, None]
  similar = jnp.einsum("btd,bsd->bts", unit(ours), unit(theirs), precision="highest")
  similar = jnp.where(ours_seen[:, :, None] & theirs_seen[:, None], similar, 0)
  empty = (our_lengths == _EMPTY) | (their_lengths == _EMPTY)

  def mean(best: Float[Array, "b n"], weights: Float[Array, "b n"]) -> Float[Array, " b"]:
    total = weights.sum(axis=1)
    scored = (best * weights).sum(axis=1) / jnp.where(total > 0, total, 1)
    return jnp.where(empty, 0, scored)

  precision = mean(similar.max(axis=2), our_weights)
  recall = mean(similar.max(axis=1), their_weights)
  total = precision + recall
  return precision, recall, 2 * precision * recall / jnp.where(total == 0, 1, total)


class BertScore:
  """Precision, recall and F1 of predictions, at a layer of the encoder in `folder`."""

  def __init__(self, folder: str | os.PathLike, *, layer: int, batch_tokens: int = 1024):
    """Reads the weights.

    Args:
      folder: of Hugging Face, with the tokenizer: BERT, PubMedBERT, RoBERTa and the like.
      layer: whose output is compared; 0: the embeddings. bert-score takes 9 of
        bert-base-uncased's 12 and 17 of roberta-large's 24.
      batch_tokens: on each side at once, padding included: what the memory is needed for.

    Raises:
      UserError: if the folder lacks something, or the model that layer.
    """
    folder = pathlib.Path(folder)
    section = hf_encoders.config_from_hf(read_json(folder / "config.json"))
    if not 0 <= layer <= section["depth"]:
      raise UserError(f"{folder}: has the layers 0 to {section['depth']}, not {layer}")
    # The layers above are never run, nor are the heads.
    section |= dict(depth=max(layer, 1), lm_head=False, pooler=False)
    self._model = Encoder(**{name: x for name, x in section.items() if name != "type"})
    self._params = _read(folder, self._model, section)
    self._layer, self._batch_tokens = layer, batch_tokens
    import transformers  # seconds to import

    try:
      self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
      raise UserError(f"{folder}: has no tokenizer: {str(error).splitlines()[0]}") from None
    rows = section["max_positions"] - section["position_offset"]
    self._max_tokens = min(rows, self._tokenizer.model_max_length)

  def __call__(
    self,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    idf: bool = False,
  ) -> dict[str, Float[np.ndarray, " n"]]:
    """The scores by `NAMES`, float64, each the highest over a prediction's references.

    Texts are cut at the longest the model can read; an empty one scores 0.

    Args:
      idf: whether rare tokens count more, by how many of the references have them: the same
        answer then scores otherwise in another set.
    """
    ids = functools.lru_cache(maxsize=None)(self.token_ids)
    return self.score_ids(
      [ids(text) for text in predictions],
      [[ids(text) for text in texts] for texts in references],
      idf=idf,
    )

  def token_ids(self, text: str) -> list[int]:
    """As bert-score has them: outer white space off, with the first and the last token."""
    # RoBERTa's first word is to look like the others.
    space = " " if self._model.position_offset and text.strip() else ""
    return self._tokenizer.encode(
      space + text.strip(), truncation=True, max_length=self._max_tokens
    )

  def score_ids(
    self,
    predictions: Sequence[Sequence[int]],
    references: Sequence[Sequence[Sequence[int]]],
    *,
    idf: bool = False,
  ) -> dict[str, Float[np.ndarray, " n"]]:
    """`__call__` on texts that are tokens already."""
    owners = [i for i, texts in enumerate(references) for _ in texts]
    pairs = [
      (tuple(ours), tuple(theirs))
      for ours, texts in zip(predictions, references, strict=True)
      for theirs in texts
    ]
    weights = inverse_frequency([theirs for _, theirs in pairs]) if idf else self._plain_weights()
    distinct = sorted(set(pairs), key=lambda pair: (max(map(len, pair)), pair))
    scored: dict[Pair, Float[np.ndarray, " 3"]] = {}
    for width, group in itertools.groupby(distinct, self._width):
      same, rows = list(group), max(1, self._batch_tokens // width)
      for start in range(0, len(same), rows):
        batch = same[start : start + rows]
        scored |= zip(batch, self._score_batch(batch, (rows, width), weights), strict=True)
    best = np.full((len(predictions), len(NAMES)), -np.inf)
    np.maximum.at(best, owners, np.array([scored[pair] for pair in pairs]).reshape(-1, 3))
    return dict(zip(NAMES, best.T, strict=True))

  def _plain_weights(self) -> Mapping[int, float]:
    ends = (self._tokenizer.cls_token_id, self._tokenizer.sep_token_id)
    return collections.defaultdict(lambda: 1.0, dict.fromkeys(ends, 0.0))

  def _width(self, pair: Pair) -> int:
    # Always some padding, so that no score depends on what else is in the batch.
    return min(-(-(max(map(len, pair)) + 1) // _BUCKET) * _BUCKET, self._max_tokens)

  def _score_batch(
    self, pairs: Sequence[Pair], shape: tuple[int, int], weights: Mapping[int, float]
  ) -> Float[np.ndarray, "n 3"]:
    tokens, scales = np.zeros((2, *shape), np.int32), np.zeros((2, *shape), np.float32)
    lengths = np.zeros((2, shape[0]), np.int32)
    for row, pair in enumerate(pairs):
      for side, ids in enumerate(pair):
        tokens[side, row, : len(ids)] = ids
        scales[side, row, : len(ids)] = [weights[i] for i in ids]
        lengths[side, row] = len(ids)
    scores = _forward(self._model, self._layer, self._params, tokens, scales, lengths)
    return np.asarray(scores, np.float64)[: len(pairs)]


def inverse_frequency(texts: Sequence[Sequence[int]]) -> Mapping[int, float]:
  """log((n + 1) / (k + 1)) of a token that k of n texts have: the ends of a text weigh nothing."""
  counts = collections.Counter(token for ids in texts for token in set(ids))
  weigh = lambda number: math.log((len(texts) + 1) / (number + 1))
  return collections.defaultdict(
    lambda: weigh(0), {token: weigh(number) for token, number in counts.items()}
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(
  model: Encoder,
  layer: int,
  params: Mapping,
  tokens: Int[Array, "2 b t"],
  weights: Float[Array, "2 b t"],
  lengths: Int[Array, "2 b"],
) -> Float[Array, "b 3"]:
  flat = tokens.reshape(-1, tokens.shape[-1])
  seen = jnp.arange(flat.shape[1]) < lengths.reshape(-1, 1)
  positions = hf_encoders.positions(seen, model.position_offset)
  with jax.default_matmul_precision("highest"):
    out: Any = model.apply(params, flat, positions, seen[:, None])
  ours, theirs = out["hidden"][layer].reshape(*tokens.shape, -1)
  scores = greedy_cosine(ours, weights[0], lengths[0], theirs, weights[1], lengths[1])
  return jnp.stack(scores, axis=-1)


def _read(folder: pathlib.Path, model: Encoder, section: Mapping) -> Mapping:
  """The parameters; a model saved with a head has its names under the family's."""
  tokens, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1), bool)
  tree = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens, tokens, mask))["params"]
  tensors = {
    re.sub(r"^(bert|roberta)\.", "", name): tensor
    for name, tensor in open_checkpoint(folder).items()
  }
  abstract = traverse_util.flatten_dict(tree, sep="/")
  flat = to_ours(hf_encoders.mapping(section), abstract, tensors, ignore=".*")
  leaves = {path: jnp.asarray(x, jnp.float32) for path, x in flat.items()}
  return {"params": traverse_util.unflatten_dict(leaves, sep="/")}
