"""The train state, the objective and one optimiser update.

Only leaves whose path matches `config.trainable` are differentiated and have optimiser memory.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util
from jaxtyping import Array, Float, Int

from medflax import peft
from medflax.models.chunks import LogitSums
from medflax.models.vlm import model_inputs

Flat = Any  # dict[str, leaf]; a tree transformation may put anything in its place


class TrainState(struct.PyTreeNode):
  """Everything that training changes, and the frozen weights.

  Leaves are arrays, or what stands for them: abstract arrays, boxed ones, shardings.

  Attributes:
    step: batches consumed, skipped ones included; an int32 scalar.
    trainable, frozen: disjoint flat dicts by `path/to/leaf`.
    opt_state: the optimiser's state for `trainable`.
    bad_steps: skipped updates, in all and in a row up to now.
    ema: moving average of `trainable`; empty without `train.ema`.
  """

  step: Any
  trainable: Flat
  frozen: Flat
  opt_state: Any
  bad_steps: Flat
  ema: Flat

  @property
  def params(self) -> dict[str, Any]:
    """The nested tree that the model takes."""
    return traverse_util.unflatten_dict(self.frozen | self.trainable, sep="/")

  @property
  def eval_params(self) -> dict[str, Any]:
    """`params` with the moving average where there is one."""
    return self.replace(trainable=self.ema or self.trainable).params


def create_state(
  params: Mapping[str, Any], trainable: str, tx: optax.GradientTransformation, *, ema: bool
) -> TrainState:
  """Splits parameters by the regex `trainable` (a full match of `path/to/leaf`).

  The settings of adapters are frozen even where it matches them.
  """
  flat = traverse_util.flatten_dict(
    params, sep="/", is_leaf=lambda _, x: isinstance(x, nn.meta.AxisMetadata)
  )
  chosen = {
    path: leaf
    for path, leaf in flat.items()
    if re.fullmatch(trainable, path) and not re.fullmatch(peft.SETTINGS, path)
  }
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    trainable=chosen,
    frozen={path: leaf for path, leaf in flat.items() if path not in chosen},
    opt_state=tx.init(chosen),
    bad_steps={"total": jnp.zeros((), jnp.int32), "in_a_row": jnp.zeros((), jnp.int32)},
    ema=jax.tree.map(jnp.copy, chosen) if ema else {},
  )


def target_weights(batch: Mapping[str, Array], shift: int) -> Float[Array, "b targets"]:
  """[b, t - shift]: what token i + shift weighs as a target; 0 outside of token i's document."""
  segments = batch["segment_ids"]
  stop = segments.shape[1] - shift
  return batch["loss_mask"][:, shift:] * (segments[:, shift:] == segments[:, :stop])


def cross_entropy(
  logits: Float[Array, "b t vocab"], batch: Mapping[str, Array], z_loss: float, shift: int = 1
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Summed cross-entropy in nats of the tokens `shift` places further; sums of what is logged.

  `z_loss` times the squared log-normaliser keeps logits near zero (PaLM, Chowdhery et al. 2022).
  """
  targets, weights = batch["tokens"][:, shift:], target_weights(batch, shift)
  return summed_loss(logits[:, : targets.shape[1]], targets, weights, z_loss)


def summed_loss(
  logits: Float[Array, "b t vocab"],
  targets: Int[Array, "b t"],
  weights: Float[Array, "b t"],
  z_loss: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """`cross_entropy` of each token's logits with its target."""
  logits = logits.astype(jnp.float32)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  # Tokens that are never predicted have no logits, and weight 0: any finite number will do.
  target = jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="clip")
  nll = log_z - target[..., 0]
  # No other token is as probable: XLA vectorises counts on CPUs, and not argmax.
  hits = ((logits >= target).sum(-1) == 1) * weights
  sums = {"loss": (nll * weights).sum(), "accuracy": hits.sum()}
  return sums["loss"] + z_loss * (jnp.square(log_z) * weights).sum(), sums


def all_targets(
  batch: Mapping[str, Array], shift: int
) -> tuple[Int[Array, "b t"], Float[Array, "b t"]]:
  """The target of every token and its weight, which is 0 at the last `shift`."""
  ends = lambda x: jnp.pad(x, ((0, 0), (0, shift)))
  return ends(batch["tokens"][:, shift:]), ends(target_weights(batch, shift))


def _summed(gradients: Callable, batch: Mapping[str, Array], accumulate: int) -> Any:
  """The sum of `gradients(rows, index)` over `accumulate` micro-batches.

  Each takes every `accumulate`-th row, so that it is spread over all devices.
  """
  if accumulate == 1:  # no loop: XLA runs a loop's body several times slower on CPUs
    return gradients(batch, 0)
  split = lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)
  indexed = (jax.tree.map(split, dict(batch)), jnp.arange(accumulate))
  shapes = jax.eval_shape(gradients, *jax.tree.map(lambda x: x[0], indexed))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  add = lambda total, rows: (jax.tree.map(jnp.add, total, gradients(*rows)), None)
  return jax.lax.scan(add, zeros, indexed)[0]


def train_step(
  state: TrainState,
  batch: Mapping[str, Array],
  *,
  model: Any,
  tx: optax.GradientTransformation,
  seed: int,
  z_loss: float = 0.0,
  loss_chunk: int = 0,
  accumulate: int = 1,
  ema: float = 0.0,
) -> tuple[TrainState, dict[str, Array]]:
  """One update from the mean loss per target of the whole batch, in `accumulate` micro-batches.

  Of each row the logits of `loss_chunk` tokens are in memory at once; 0: of all.
  `model` is a `medflax.models.VLM` or whatever has its `__call__`, `hide` and `shift`.

  Where the loss or a gradient is not finite, the weights and the optimiser's state stay as they
  are, bit for bit, and the step is counted in `bad_steps`.
  """
  num_targets = jnp.maximum(target_weights(batch, model.shift).sum(), 1.0)
  rng = jax.random.fold_in(jax.random.key(seed), 1)  # init took the key itself
  rng = jax.random.fold_in(rng, state.step)

  def loss_fn(trainable, rows, index):
    args, kwargs = model_inputs(model.hide(rows))
    rngs = {"dropout": jax.random.fold_in(rng, index)}
    params = state.replace(trainable=trainable).params
    if loss_chunk:
      of = lambda logits, rows: summed_loss(logits, rows[0], rows[1], z_loss)
      kwargs["sums"] = LogitSums(of, all_targets(rows, model.shift), loss_chunk)
      sums = model.apply({"params": params}, *args, **kwargs, rngs=rngs)
    else:
      logits = model.apply({"params": params}, *args, **kwargs, rngs=rngs)
      sums = cross_entropy(logits, rows, z_loss, model.shift)
    return jax.tree.map(lambda x: x / num_targets, sums)

  def gradients(rows, index):
    (_, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.trainable, rows, index)
    return sums, grads

  metrics, grads = _summed(gradients, batch, accumulate)
  grad_norm = optax.tree.norm(grads)
  ok = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
  updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
  trainable = optax.apply_updates(state.trainable, updates)
  average = jax.tree.map(lambda a, w: ema * a + (1 - ema) * w, state.ema, trainable if ema else {})
  keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)
  bad = state.bad_steps
  bad = {"total": bad["total"] + ~ok, "in_a_row": jnp.where(ok, 0, bad["in_a_row"] + 1)}
  state = state.replace(
    step=state.step + 1,
    trainable=keep(trainable, state.trainable),
    opt_state=keep(opt_state, state.opt_state),
    ema=keep(average, state.ema),
    bad_steps=bad,
  )
  return state, metrics | {"grad_norm": grad_norm} | {f"bad_{k}": v for k, v in bad.items()}
