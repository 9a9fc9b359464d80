"""Optimisers and learning-rate schedules by name, over flat dicts of `path/to/leaf`."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from medflax.utils import UserError, pick

# Each takes (peak, num_steps, warmup_steps, final_fraction). `num_steps` counts updates of the
# weights: a step with accumulation is one, a skipped one is none.
SCHEDULES: dict[str, Callable[[float, int, int, float], optax.Schedule]] = {
  "constant": lambda peak, steps, warmup, final: _warm(optax.constant_schedule(peak), peak, warmup),
  "linear": lambda peak, steps, warmup, final: _warm(
    optax.linear_schedule(peak, peak * final, max(steps - warmup, 1)), peak, warmup
  ),
  "cosine": lambda peak, steps, warmup, final: _warm(
    optax.cosine_decay_schedule(peak, max(steps - warmup, 1), alpha=final), peak, warmup
  ),
}


def _warm(schedule: optax.Schedule, peak: float, warmup: int) -> optax.Schedule:
  """Rises linearly from 0 over `warmup` updates, then follows `schedule`."""
  if not warmup:
    return schedule
  return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])


def make_schedule(config: ml_collections.ConfigDict, num_steps: int) -> optax.Schedule:
  """Learning rate as a function of the number of updates made, from `config.optimizer`."""
  make = pick(SCHEDULES, config.schedule, "config.optimizer.schedule")
  return make(config.lr, num_steps, config.warmup_steps, config.final_lr_fraction)


def _adamw(config: ml_collections.ConfigDict, learning_rate) -> optax.GradientTransformation:
  """AdamW (Loshchilov & Hutter 2019); decay only on weights whose path matches `decay`."""
  return optax.chain(
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
    optax.add_decayed_weights(config.weight_decay, mask=matching(config.decay)),
    optax.scale_by_learning_rate(learning_rate),
  )


def _adafactor(config: ml_collections.ConfigDict, learning_rate) -> optax.GradientTransformation:
  """Adafactor (Shazeer & Stern 2018) without momentum: memory of a row and a column a matrix.

  Steps are not relative to the weights' size, as in ViT-22B and PaLM, so that learning rates are
  AdamW's; `b1`, `b2` and `eps` do not matter.
  """
  return optax.chain(
    optax.scale_by_factored_rms(),
    optax.clip_by_block_rms(1.0),
    optax.add_decayed_weights(config.weight_decay, mask=matching(config.decay)),
    optax.scale_by_learning_rate(learning_rate),
  )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "adamw": _adamw,
  "adafactor": _adafactor,
}


def make_optimizer(
  config: ml_collections.ConfigDict, num_steps: int
) -> optax.GradientTransformation:
  """The update rule of `config.optimizer`: clip, optimise, scale by path.

  Gradient accumulation is not here: the train step averages micro-batches itself, so that the
  loss is normalised by the targets of the whole batch.

  Raises:
    UserError: for a regular expression that does not compile.
  """
  for pattern in (config.decay, *(pattern for pattern, _ in config.lr_multipliers)):
    compile_regex(pattern, "config.optimizer")
  steps = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
  make = pick(OPTIMIZERS, config.type, "config.optimizer.type")
  steps.append(make(config, make_schedule(config, num_steps)))
  for pattern, factor in config.lr_multipliers:
    steps.append(optax.masked(optax.scale(factor), matching(pattern)))
  return optax.chain(*steps)


def matching(pattern: str) -> Callable[[Mapping[str, Any]], dict[str, bool]]:
  """A mask function for optax: True for leaves whose whole path matches `pattern`."""
  return lambda flat: {path: re.fullmatch(pattern, path) is not None for path in flat}


def cast(tree: Any, dtype: str) -> Any:
  """The tree with its floating-point leaves in another dtype."""
  to = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
  return jax.tree.map(to, tree)


def compile_regex(pattern: str, where: str) -> re.Pattern:
  """`re.compile`, or a UserError that names the field."""
  try:
    return re.compile(pattern)
  except re.error as error:
    raise UserError(f"{where}: {pattern!r} is not a regular expression: {error}") from None
