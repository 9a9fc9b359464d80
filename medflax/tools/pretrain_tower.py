r"""Pretrains a vision tower and its connector to name what phantoms show.

python -m medflax.tools.pretrain_tower --config=configs/flamingo_med.py --to FILE.safetensors

The published systems start from a pretrained vision encoder; this makes one for the tower of any
config, and made the one that `tiny` Flamingo starts from, as CLIP is for `9b`. On the mean of the
connector's latents, a cosine classifier shared by 2D and 3D gathers the images of a finding in one
direction, as CLIP's training does, so that likeness in content is likeness in features, which
matching by examples needs. Linear probes keep modality, side, size and count readable, with a
lesser weight. Both are thrown away.
"""

import pathlib
import sys
import time
from collections.abc import Iterable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import safetensors.numpy
from flax import traverse_util

from medflax.config import load_config, validate
from medflax.data import DATASETS
from medflax.data.documents import IMAGE, VOLUME, Dataset
from medflax.data.phantoms import FINDINGS, MODALITIES
from medflax.flags import Parser
from medflax.models import build_model
from medflax.utils import UserError, write_atomic

# Classes of each attribute in `Sample.meta`; others, as the side of no finding, are not scored.
ATTRIBUTES: dict[str, tuple] = {
  "finding": (*FINDINGS, "no finding"),
  "modality": MODALITIES,
  "side": ("left", "right"),
  "size": ("small", "large"),
  "count": (1, 2, 3),
}
TASKS = {IMAGE: "report", VOLUME: "report_3d"}
PER_EPISODE = 16


def labelled(
  dataset: Dataset, kinds: Iterable[str], split: str, indices: range
) -> dict[str, tuple[np.ndarray, ...]]:
  """For each kind: media [n, 1, …] and labels [n, attributes], -1 where there is none."""
  batch = {}
  for kind in kinds:
    episodes = dataset.episodes(TASKS[kind], split, PER_EPISODE - 1)
    samples = [s for i in indices for s in (episodes[i].query, *episodes[i].support)]
    labels = [[_label(s.meta[key], names) for key, names in ATTRIBUTES.items()] for s in samples]
    batch[kind] = np.stack([s.media[0].array for s in samples])[:, None], np.array(labels)
  return batch


def _label(value: str | int, names: tuple) -> int:
  return names.index(value) if value in names else -1


def losses(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Summed cross-entropy of all attributes, and the accuracy of each."""
  ends = np.cumsum([len(names) for names in ATTRIBUTES.values()])[:-1]
  total, accuracy = jnp.zeros(()), []
  for i, scores in enumerate(jnp.split(logits, ends, axis=-1)):
    scored = labels[:, i] >= 0
    mean = lambda x, scored=scored: (x * scored).sum() / jnp.maximum(scored.sum(), 1)
    total += mean(
      optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(labels[:, i], 0))
    )
    accuracy.append(mean(scores.argmax(-1) == labels[:, i]))
  return total, jnp.stack(accuracy)


def pretrain(
  config: ml_collections.ConfigDict, *, num_steps: int, lr: float
) -> dict[str, np.ndarray]:
  """Trains and returns the flat weights of tower and connector, in float16.

  Raises:
    UserError: if the config's data have no media.
  """
  kinds = [kind for kind in TASKS if config.data.max_media[kind]]
  if not kinds:
    raise UserError("config.data.max_media: there are no media, so there is no tower to train")
  dataset = DATASETS["phantom"](config.data, config.seed)
  model = build_model(config.model.to_dict() | {"attention": "xla"})
  probe = nn.Dense(sum(len(names) for names in ATTRIBUTES.values()))

  unit = lambda x: x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-3)

  def objective(params, batch):
    results = []
    for kind, (media, labels) in batch.items():
      variables = {"params": params["model"]}
      features = jnp.asarray(model.apply(variables, {kind: media}, method="embed_media"))
      pooled = features[:, 0].mean(1) - params["centre"]
      loss, accuracy = losses(probe.apply({"params": params[kind]}, pooled), labels)
      cosine = 10.0 * unit(pooled) @ unit(params["prototypes"]).T
      gather = optax.softmax_cross_entropy_with_integer_labels(cosine, labels[:, 0]).mean()
      results.append((2.0 * gather + 0.3 * loss, accuracy))
    return sum(loss for loss, _ in results), [accuracy for _, accuracy in results]

  schedule = optax.warmup_cosine_decay_schedule(0.0, lr, num_steps // 20, num_steps, lr / 20)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.05))

  @jax.jit
  def step(params, opt_state, batch):
    grads = jax.grad(lambda p: objective(p, batch)[0])(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  key = jax.random.key(config.seed)
  first = labelled(dataset, kinds, "train", range(1))
  media = {kind: jnp.asarray(media[:1]) for kind, (media, _) in first.items()}
  features, variables = model.init_with_output(key, media, method="embed_media")
  params, width = {"model": nn.unbox(variables)["params"]}, features.shape[-1]
  params |= {kind: probe.init(key, jnp.zeros((1, width)))["params"] for kind in media}
  params["prototypes"] = jax.random.normal(key, (len(ATTRIBUTES["finding"]), width))
  params["centre"] = jnp.zeros(width)
  opt_state, began, accuracy = tx.init(params), time.monotonic(), jax.jit(objective)
  held_out = labelled(dataset, kinds, "val", range(32))
  batch = lambda i: labelled(dataset, kinds, "train", range(3 * i, 3 * i + 3))
  for i in range(1, num_steps + 1):
    params, opt_state = step(params, opt_state, batch(i))
    if i % 100 == 0 or i == num_steps:
      scores = accuracy(params, held_out)[1]
      shown = "  ".join(
        f"{kind} " + " ".join(f"{k} {v:.3f}" for k, v in zip(ATTRIBUTES, s, strict=True))
        for kind, s in zip(held_out, scores, strict=True)
      )
      left = (time.monotonic() - began) / i * (num_steps - i)
      print(f"step {i}/{num_steps}  {shown}  {left:.0f} s left", flush=True)
  flat = traverse_util.flatten_dict(jax.device_get(params["model"]), sep="/")
  return {path: np.asarray(x, np.float16) for path, x in flat.items()}


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = Parser("medflax.tools.pretrain_tower", __doc__)
  parser.add_argument("--config", required=True, metavar="FILE.py[:ARG=VALUE,...]")
  parser.add_argument("--to", type=pathlib.Path, required=True, help="the safetensors file")
  parser.add_argument("--num_steps", type=int, default=3000)
  parser.add_argument("--lr", type=float, default=4e-3)
  try:
    flags, overrides = parser.parse(argv)
    if flags.to.exists():
      raise UserError(f"--to {flags.to} exists; remove it or choose another file")
    config = load_config(flags.config, overrides)
    validate(config)
    weights = pretrain(config, num_steps=flags.num_steps, lr=flags.lr)
    write_atomic(flags.to, safetensors.numpy.save(weights))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"{flags.to}: give it to a run as --config.init")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
