"""Perplexity: how well held-out documents are predicted, token by token."""

import dataclasses
import functools
import itertools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from tqdm import tqdm

from medflax.data.documents import TARGETS, episode_document
from medflax.data.encode import Encoded, RowShape, collate, encode_document, media_options
from medflax.evals import base
from medflax.inference import decode
from medflax.inference.features import FeatureStore
from medflax.metrics.intervals import Measurement, bootstrap
from medflax.models.vlm import model_inputs
from medflax.utils import pick

LENGTH_MULTIPLE = 32

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
  """`config.evals.<name>` of type `perplexity`.

  Attributes:
    num_shots: support samples in each document.
    targets: which of their answers count beside the query's, a key of `documents.TARGETS`.
    num_documents: how many, or all there are if fewer.
  """

  task: str
  split: str = "val"
  num_shots: int = 4
  targets: str = "all"
  num_documents: int = 256
  batch_size: int = 64


@functools.partial(jax.jit, static_argnames="model")
def score(model: Any, params: PyTree, batch: Mapping[str, Array]) -> Float[Array, "b 2"]:
  """Each row's summed negative log-likelihood of its targets, in nats, and their number."""
  args, kwargs = model_inputs(model.hide(batch))
  logits = jnp.asarray(model.apply({"params": params}, *args, **kwargs), jnp.float32)
  targets, weights = (batch[key][:, model.shift :] for key in ("tokens", "loss_mask"))
  logits = logits[:, : targets.shape[1]]
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="clip")[..., 0]
  nll = jax.nn.logsumexp(logits, axis=-1) - chosen
  return jnp.stack([(nll * weights).sum(axis=1), weights.sum(axis=1)], axis=1)


class Perplexity:
  """Evaluator: `<name>/nll` (nats a target token) and `<name>/perplexity`, its exponential.

  The interval resamples documents by their query's group.
  """

  def __init__(self, name: str, config: Any, context: base.EvalContext):
    self.name, self.context = name, context
    self.settings = base.read_settings(Settings, name, config)
    base.check_task(name, self.settings.task, context.dataset)
    pick(TARGETS, self.settings.targets, f"config.evals.{name}.targets")

  def run(
    self, params: PyTree, step: int, store: FeatureStore | None = None
  ) -> dict[str, Measurement]:
    """Scores every document, writes the results; see `base.Evaluator`."""
    del store  # documents are read whole, their media with them
    start = time.monotonic()
    settings, context = self.settings, self.context
    episodes = context.dataset.episodes(
      settings.task, settings.split, settings.num_shots, settings.num_documents
    )
    queries, documents = [], []
    for index in range(len(episodes)):
      episode = episodes[index]
      document = episode_document(episode, context.prompt, targets=settings.targets)
      options = media_options(context.data_config)
      documents.append(encode_document(document, context.tokenizer, **options))
      queries.append(episode.query)
    sums = self._score(documents, params)
    nll = bootstrap(
      sums[:, 0] / sums[:, 1],
      [query.group for query in queries],
      weights=sums[:, 1],
      seed=context.seed,
    )
    metrics = {f"{self.name}/nll": nll, f"{self.name}/perplexity": exponential(nll)}
    base.write_results(
      context,
      self.name,
      step,
      task=settings.task,
      split=settings.split,
      num_shots=settings.num_shots,
      num_tokens=int(sums[:, 1].sum()),
      metrics=metrics,
      samples=(
        {"id": query.id, "group": query.group, "nll": float(nll), "num_tokens": int(count)}
        for query, (nll, count) in zip(queries, sums, strict=True)
      ),
    )
    seconds = time.monotonic() - start
    log.info("%s: perplexity %s in %.1f s", self.name, metrics[f"{self.name}/perplexity"], seconds)
    return metrics

  def _score(
    self, documents: Sequence[Encoded], params: PyTree
  ) -> Float[np.ndarray, "documents 2"]:
    """Summed negative log-likelihood and number of targets of each document."""
    context, size = self.context, self.settings.batch_size
    shape = row_shape(documents, inline=context.data_config.media_tokens > 0)
    sums = []

    def launch(chunk):
      rows = [[document] for document in chunk] + [[]] * (size - len(chunk))
      batch = collate(rows, shape, context.tokenizer.pad_id)
      return score(context.model, params, base.put_all(batch, context))

    launched = ((chunk, launch(chunk)) for chunk in base.batched(documents, size))
    with tqdm(total=len(documents), desc=self.name, leave=False, disable=None) as bar:
      for chunk, result in base.lagged(launched):
        sums.append(decode.fetch(result)[: len(chunk)])
        bar.update(len(chunk))
    return np.concatenate(sums).astype(np.float64)


def row_shape(documents: Sequence[Encoded], *, inline: bool = False) -> RowShape:
  """The smallest row that holds any one of the documents, its length a multiple of 32."""
  longest = max(len(document["tokens"]) for document in documents)
  slots: dict[str, tuple[int, ...]] = {}
  for document in documents:
    for kind, items in itertools.groupby(
      sorted(document["media"], key=lambda media: media.kind), key=lambda media: media.kind
    ):
      shapes = [media.array.shape for media in items]
      count = max(len(shapes), slots.get(kind, (0,))[0])
      slots[kind] = (count, *shapes[0])
  return RowShape(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, slots, inline)


def exponential(nll: Measurement) -> Measurement:
  """Exp of a measurement: ends exactly, standard error to first order."""
  value = math.exp(nll.value)
  low, high = map(math.exp, nll.ci95)
  return Measurement(value, value * nll.stderr, (low, high), nll.n)
