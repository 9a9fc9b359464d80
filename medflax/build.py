"""From a config to the parts of a run, before any array exists."""

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from medflax import optim, peft, quantize
from medflax.data.documents import IMAGE
from medflax.data.encode import collate
from medflax.data.pipeline import row_shape, with_media_slots
from medflax.data.tokenizer import Tokenizer, load_tokenizer
from medflax.models import build_model, model_inputs
from medflax.models.attention import BY_PLATFORM
from medflax.models.fusion.inline import Inline
from medflax.parallel import sharding
from medflax.parallel.mesh import make_mesh
from medflax.train_step import TrainState, create_state, train_step
from medflax.utils import UserError
from medflax.weights import open_sources

log = logging.getLogger(__name__)

ONE_IMAGE = {IMAGE: 1}
LOGIT_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a run is made of, before any array exists.

  `state` and `batch` are abstract, with the shardings of the real ones; `create` makes the
  initial state of a seed, directly in its shards.
  """

  config: ml_collections.ConfigDict
  mesh: Mesh
  tokenizer: Tokenizer
  model: nn.Module
  tx: optax.GradientTransformation
  state: TrainState
  batch: dict[str, jax.ShapeDtypeStruct]
  create: Callable[[int], TrainState]

  def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a host batch, on the mesh."""
    return sharding.put_batch(batch, self.mesh)


def build(
  config: ml_collections.ConfigDict,
  media_per_sample: Mapping[str, int] = ONE_IMAGE,
  devices: Sequence[Any] | None = None,
) -> Parts:
  """Everything but the data set and the evaluators; nothing is allocated on a device.

  Args:
    config: validated.
    media_per_sample: of the data set, for slots of `data.max_media` that are left to it (-1).
    devices: of the mesh; defaults to all devices of all processes.

  Raises:
    UserError: where parts do not fit each other.
  """
  config = with_media_slots(config, media_per_sample)
  mesh = make_mesh(config.mesh, devices)
  tokenizer = load_tokenizer(**config.tokenizer.to_dict())
  lm = config.model.lm
  if tokenizer.vocab_size > lm.vocab_size + lm.get("extra_tokens", 0):
    raise UserError(
      f"config.model.lm.vocab_size = {lm.vocab_size} is too small for the "
      f"tokenizer's {tokenizer.vocab_size} tokens"
    )
  rows, ways = config.train.batch_size, sharding.num_row_shards(mesh)
  if rows % (ways * config.optimizer.accumulate):
    raise UserError(
      f"config.train.batch_size = {rows} must be a multiple of mesh.replica × "
      f"mesh.data × mesh.fsdp × optimizer.accumulate = {ways} × {config.optimizer.accumulate}"
    )
  model = build_model(_resolved(config, mesh))
  dtype = config.train.frozen_dtype
  tx = optim.make_optimizer(config.optimizer, config.train.num_steps)
  optim.compile_regex(config.trainable, "config.trainable")
  row = collate([[]], row_shape(config.data), tokenizer.pad_id)
  batch = {
    key: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=sharding.batch_sharding(mesh))
    for key, x in row.items()
  }

  @functools.partial(jax.jit, inline=True)  # traced once, for the shapes and for the program
  def init(key: jax.Array) -> TrainState:
    args, kwargs = model_inputs({k: jnp.asarray(x) for k, x in row.items()})
    params = model.init(key, *args, **kwargs)["params"]
    params = peft.add(jax.random.fold_in(key, 1), params, config.to_dict()["peft"])
    state = create_state(params, config.trainable, tx, ema=config.train.ema > 0)
    frozen_dtype = quantize.REST if dtype == quantize.INT8 else dtype
    return state.replace(frozen=optim.cast(state.frozen, frozen_dtype))

  store = lambda state: state.replace(frozen=quantize.stored(state.frozen, dtype))
  made = jax.eval_shape(init, jax.random.key(0))
  boxed = jax.eval_shape(store, made)
  _check_media_tokens(config, model, boxed.params, batch)
  if peft.adapters(boxed.frozen) and not peft.adapters(boxed.trainable):
    raise UserError(
      f"config.peft adds weights that config.trainable = {config.trainable!r} leaves untrained; "
      r"add |.*/(lora_.*|prefix_.*|prompt.*) to it"
    )
  shardings = sharding.state_shardings(boxed, mesh)
  made_shardings = sharding.state_shardings(made, mesh)
  make = jax.jit(lambda key: nn.unbox(init(key)), out_shardings=made_shardings)

  def create(seed: int) -> TrainState:
    state = _initialised(make(jax.random.key(seed)), config)
    if dtype != quantize.INT8:
      return state
    return state.replace(frozen=quantize.quantised(state.frozen, made.frozen))

  return Parts(
    config=config,
    mesh=mesh,
    tokenizer=tokenizer,
    model=model,
    tx=tx,
    state=sharding.with_shardings(nn.unbox(boxed), shardings),
    batch=batch,
    create=create,
  )


def _resolved(config: ml_collections.ConfigDict, mesh: Mesh) -> dict[str, Any]:
  """`config.model` with what follows from the devices and the data."""
  name = config.model.attention
  if name == "auto":
    name = BY_PLATFORM.get(mesh.devices.flat[0].platform, "xla")
  one_medium = config.data.media_rule != "all_prev"
  return config.model.to_dict() | {"attention": name, "one_medium": one_medium}


def _check_media_tokens(config, model, params, batch) -> None:
  """Raises UserError where inline media are not as long as the rows have room for them."""

  def embed(params, batch):
    (media, *_), _ = model_inputs(batch)
    return model.apply({"params": params}, media, method="embed_media")

  latents = 0
  if isinstance(getattr(model.lm, "fusion", None), Inline):
    features = jax.eval_shape(embed, nn.unbox(params), batch)
    latents = 0 if features is None else features.shape[2]
  if latents != config.data.media_tokens:
    raise UserError(
      f"config.data.media_tokens = {config.data.media_tokens}, but a media item of "
      f"config.model has {latents} inline tokens"
    )


def _initialised(state: TrainState, config: ml_collections.ConfigDict) -> TrainState:
  """The state with the weights of `config.init` in place; those that it lacks stay as they are.

  The sources may know kinds of media that the run has no slots for; the last one that has a weight
  gives it.
  """
  sources = open_sources(config.init)
  given = {path for source in sources for path in source.shapes}
  own = {*state.trainable, *state.frozen}
  idle = [k for k in config.model.tower.get("inputs", {}) if not config.data.max_media.get(k)]
  unused = re.compile(rf"tower/[a-z]+_({'|'.join(idle)})(_\d+)?(/.*)?")
  left, new = given - own, sorted(own - given)
  if unknown := sorted(path for path in left if not unused.fullmatch(path)):
    raise UserError(
      f"config.init: {config.init!r} has weights that the model lacks: {', '.join(unknown[:3])}; "
      "match config.model or set config.init to ''"
    )
  if given:
    rest = f"; {len(new)} begin anew, such as {new[0]}" if new else ""
    log.info("init      %d weights from %s%s", len(own) - len(new), config.init, rest)
  for part in ("trainable", "frozen", "ema"):
    leaves = getattr(state, part)
    for source in sources:
      leaves = source.merge(leaves)
    state = state.replace(**{part: leaves})
  return state


def loss_chunk(config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh) -> int:
  """Tokens of a row whose logits are made at once, from `train.loss_chunk`; 0: of all.

  Left to itself (-1), as many as a device's float32 logits in `LOGIT_BYTES` are of.
  """
  if config.train.loss_chunk != -1:
    return config.train.loss_chunk
  ways = sharding.num_row_shards(mesh) * mesh.shape["sequence"] * mesh.shape["tensor"]
  rows = config.train.batch_size / config.optimizer.accumulate
  fit = int(LOGIT_BYTES * ways / (4 * rows * config.model.lm.vocab_size))
  return 0 if fit >= config.data.max_tokens else max(fit, 1)


def jit_train_step(parts: Parts) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """The compiled `(state, batch) -> (state, metrics)`; the state passed in is donated."""
  config = parts.config
  step = functools.partial(
    train_step,
    model=parts.model,
    tx=parts.tx,
    seed=config.seed,
    z_loss=config.train.z_loss,
    loss_chunk=loss_chunk(config, parts.mesh),
    accumulate=config.optimizer.accumulate,
    ema=config.train.ema,
  )
  shardings = jax.tree.map(lambda leaf: leaf.sharding, parts.state)
  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
