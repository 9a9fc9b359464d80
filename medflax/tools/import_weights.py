r"""Imports a published checkpoint: a file for `config.init`, and the model's section beside it.

python -m medflax.tools.import_weights hugging_face LLAMA_FOLDER --to DIR
python -m medflax.tools.import_weights med_flamingo model.pt \
  --lm LLAMA_FOLDER --vision open_clip_model.safetensors --to DIR

Nothing of the checkpoint is executed, and no more than a layer's tensor is in memory at a time.
DIR gets `weights.safetensors`, `config.json` (sections of `config.model`) and `origin.json`,
by which `medflax.tools.export_weights` writes the checkpoint back.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import traverse_util

from medflax.models import LANGUAGE_MODELS, VISION_TOWERS, build_model
from medflax.models.fusion.gated_xattn import GatedXattn
from medflax.models.language.encoder import Encoder
from medflax.pretrained.checkpoint import Checkpoint, Options
from medflax.pretrained.files import write_safetensors
from medflax.pretrained.mapping import check, pieces
from medflax.pretrained.sources import SOURCES
from medflax.utils import UserError, pick, write_atomic

WEIGHTS, CONFIG, ORIGIN = "weights.safetensors", "config.json", "origin.json"
WHOLE = ("connector", "fusion", "lm", "tower")
DTYPES = {"float32": np.float32, "bfloat16": jnp.bfloat16, "float16": np.float16}


def import_weights(
  checkpoint: Checkpoint, folder: pathlib.Path, dtype: str = "", *, progress: bool = True
) -> None:
  """Writes a checkpoint as ours, tensor by tensor; what fits is checked before.

  Args:
    folder: must not hold an import yet.
    dtype: of the weights written, a name in `DTYPES`; "": that of the checkpoint.

  Raises:
    UserError: if names or shapes do not fit, or there is an import in the folder.
  """
  if (folder / WEIGHTS).exists():
    raise UserError(f"{folder / WEIGHTS} exists; remove it or choose another folder")
  leaves = abstract_leaves(checkpoint.sections, checkpoint.origin.get("xattn_every", 1))
  check(checkpoint.mapping, leaves, checkpoint.tensors, ignore=checkpoint.ignore)
  target = np.dtype(pick(DTYPES, dtype, "dtype")) if dtype else None
  source = lambda path: checkpoint.tensors[checkpoint.mapping[path].keys[0]].dtype
  specs = {path: (tuple(leaf.shape), target or source(path)) for path, leaf in leaves.items()}
  total = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in specs.values())
  read = lambda path: pieces(checkpoint.mapping[path], leaves[path].shape, checkpoint.tensors)
  with tqdm.tqdm(total=total, unit="B", unit_scale=True, disable=not progress) as bar:
    for written in write_safetensors(folder / WEIGHTS, specs, read):
      bar.update(written - bar.n)
  write_atomic(folder / CONFIG, json.dumps(checkpoint.sections, indent=2) + "\n")
  write_atomic(folder / ORIGIN, json.dumps(checkpoint.origin, indent=2) + "\n")


def abstract_leaves(
  sections: Mapping[str, Mapping[str, Any]], xattn_every: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
  """The leaves by path of the whole model, or of each part by itself; none is computed.

  Args:
    xattn_every: how a language model by itself is grouped for the fusion it will have.
  """
  if set(WHOLE) <= set(sections):
    return _leaves("", _vlm(sections))
  found: dict[str, jax.ShapeDtypeStruct] = {}
  for part, section in sections.items():
    found |= _leaves(f"{part}/", pick(PARTS, part, "part")(section, xattn_every))
  return {path: leaf for path, leaf in found.items() if not path.startswith("lm/groups/xattn/")}


def _leaves(prefix: str, init: Any) -> dict[str, jax.ShapeDtypeStruct]:
  tree = nn.unbox(jax.eval_shape(init, jax.random.key(0)))["params"]
  flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
  return {f"{prefix}{path}": leaf for path, leaf in flat.items()}


def _vlm(sections: Mapping[str, Any]) -> Any:
  model = build_model(flax.core.freeze({"dtype": "float32", "remat": "none", **sections}))
  media = {kind: x[:, None] for kind, x in _media(sections["tower"]).items()}
  tokens, ordinal = jnp.zeros((1, 2), jnp.int32), dict.fromkeys(media, jnp.ones((1, 1), jnp.int32))
  return lambda key: model.init(key, media, tokens, tokens, media_ordinal=ordinal)


def _tower(section: Mapping[str, Any], _: int) -> Any:
  model = VISION_TOWERS[section["type"]](**_fields(section))

  def init(key: jax.Array) -> Any:
    params: dict[str, Any] = {}
    for kind, x in _media(section).items():
      params |= model.init(key, x, kind)["params"]
    return {"params": params}

  return init


def _lm(section: Mapping[str, Any], xattn_every: int) -> Any:
  tokens, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2, 2), bool)
  if section["type"] == "encoder":
    return lambda key: Encoder(**_fields(section)).init(key, tokens, tokens, mask)
  fusion = GatedXattn(xattn_every) if xattn_every > 1 else None
  model = LANGUAGE_MODELS[section["type"]](**_fields(section), fusion=fusion)
  return lambda key: model.init(key, tokens, tokens, mask, None, None)


PARTS = {"tower": _tower, "lm": _lm}


def _media(tower: Mapping[str, Any]) -> dict[str, jax.Array]:
  shapes = {k: (*spec["size"], spec["channels"]) for k, spec in tower["inputs"].items()}
  return {kind: jnp.zeros((1, *shape), jnp.uint8) for kind, shape in shapes.items()}


def _fields(section: Mapping[str, Any]) -> dict[str, Any]:
  return {name: x for name, x in flax.core.freeze(section).items() if name != "type"}


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = argparse.ArgumentParser(
    prog="python -m medflax.tools.import_weights", description="Imports a published checkpoint."
  )
  parser.add_argument("source", help=f"one of: {', '.join(SOURCES)}")
  parser.add_argument("path", type=pathlib.Path, help="a file or a model folder")
  parser.add_argument("--to", type=pathlib.Path, required=True, help="the folder to write")
  parser.add_argument("--dtype", default="", help=f"one of: {', '.join(DTYPES)}; default: as it is")
  parser.add_argument("--lm", default="", help="the language model's folder, where it is apart")
  parser.add_argument("--vision", default="", help="CLIP's folder or open_clip file, likewise")
  parser.add_argument(
    "--xattn-every", type=int, default=1, help="of the fusion that a language model will have"
  )
  flags = parser.parse_args(argv)
  options = Options(lm=flags.lm, vision=flags.vision, xattn_every=flags.xattn_every)
  try:
    checkpoint = pick(SOURCES, flags.source, "source").open(flags.path, options)
    import_weights(checkpoint, flags.to, flags.dtype)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"{flags.to / WEIGHTS}: set config.init to it, and config.model as in {CONFIG}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
