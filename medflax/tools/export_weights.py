"""Writes weights, imported or trained, under the names and in the layout they came in.

python -m medflax.tools.export_weights IMPORTED --to DIR
python -m medflax.tools.export_weights WORKDIR --step 600 --to DIR
python -m medflax.tools.export_weights WORKDIR --adapter --to DIR

IMPORTED is a folder that `medflax.tools.import_weights` has written, WORKDIR a run that started
from one (`config.init`). DIR gets `model.safetensors`, in shards if it exceeds 5 GB, and of a
Hugging Face model its config.json and tokenizer: transformers loads them. LoRA is added to the
weights; `--adapter` writes adapters alone, as the peft library does. Rows of tokens that the
import added are left out, as is what the format has no place for: its leaves are listed.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from medflax import peft, quantize
from medflax.checkpoint import read_state
from medflax.flags import add_step
from medflax.loading import load_config
from medflax.pretrained import load_weights
from medflax.pretrained.checkpoint import read_json
from medflax.pretrained.files import SHARD_BYTES, write_shards
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Tensor, split, their_shape, to_theirs
from medflax.pretrained.peft_files import write_adapter
from medflax.pretrained.sources import table
from medflax.tools.import_weights import ORIGIN, TOKENIZER, WEIGHTS
from medflax.utils import UserError, write_atomic
from medflax.weights import find_step

CONFIG = "config.json"
Weights = Mapping[str, LazyTensor]
Parts = Mapping[str, tuple[Tensor, int | None]]


def read_weights(
  folder: pathlib.Path, step: int | str | None = None, like: pathlib.Path | None = None
) -> tuple[Weights, pathlib.Path]:
  """The leaves of an import or of a run, and the import whose layout they are to have.

  Args:
    step: of the run's checkpoint, as for `weights.find_step`. The moving average goes before.
    like: an import that the run started from; None: the only one.

  Raises:
    UserError: if `folder` is neither, or the run started from no import or from several.
  """
  if (folder / ORIGIN).exists():
    return load_weights(folder / WEIGHTS), folder
  config = load_config(folder)
  files = [pathlib.Path(path) for path in config.init.split(",")]
  imports = [like] if like else [file.parent for file in files if file.name == WEIGHTS]
  imports = [path for path in imports if (path / ORIGIN).exists()]
  if not imports:
    raise UserError(f"{folder}: config.init = {config.init!r} is no import, which has {ORIGIN}")
  if len(imports) > 1:
    raise UserError(f"{folder}: started from several imports; --like one of {config.init}")
  state = read_state(folder / "checkpoints", find_step(folder / "checkpoints", step))
  found: dict[str, LazyTensor] = {}
  for part in ("frozen/", "trainable/", "ema/"):
    arrays = {k.removeprefix(part): x for k, x in state.items() if k.startswith(part)}
    found |= {path: _in_memory(x) for path, x in arrays.items()}
  return quantize.floats(found), imports[0]


def _in_memory(x: np.ndarray) -> LazyTensor:
  return LazyTensor(x.shape, x.dtype, lambda: x, lambda index: np.asarray(x[index]))


def export_weights(
  ours: Weights,
  imported: pathlib.Path,
  to: pathlib.Path,
  *,
  shard_bytes: int = SHARD_BYTES,
  progress: bool = True,
) -> list[str]:
  """Writes a foreign checkpoint tensor by tensor, from single layers of ours.

  Args:
    ours: leaves by path, see `read_weights`.
    imported: the import that says what the checkpoint looks like.
    to: must not hold a checkpoint yet.

  Returns:
    The paths of leaves that the checkpoint has no place for.

  Raises:
    UserError: if nothing fits, or there is a checkpoint in `to`.
  """
  if there := sorted(to.glob("model*.safetensors")):
    raise UserError(f"{there[0]} exists; remove it or choose another folder")
  origin = read_json(imported / ORIGIN)
  ours = _merged(ours, origin.get("lora", {}))
  mapping = {path: tensor for path, tensor in table(origin).items() if path in ours}
  if not mapping:
    raise UserError(f"there are none of the leaves that {imported / ORIGIN} tells of")
  theirs = split(mapping)
  specs = {key: _spec(parts, ours) for key, parts in theirs.items()}
  for key, rows in origin.get("rows", {}).items():
    (_, *inner), dtype = specs[key]
    specs[key] = (rows, *inner), dtype

  def pieces(key: str) -> Iterator[np.ndarray]:
    parts = theirs[key]
    layers = {p: ours[p][() if layer is None else layer] for p, (_, layer) in parts.items()}
    whole = to_theirs({path: tensor for path, (tensor, _) in parts.items()}, layers)[key]
    yield whole[: specs[key][0][0]] if whole.ndim else whole

  total = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in specs.values())
  with tqdm.tqdm(total=total, unit="B", unit_scale=True, disable=not progress) as bar:
    for written in write_shards(to, specs, pieces, shard_bytes):
      bar.update(written - bar.n)
  if "config" in origin:
    write_atomic(to / CONFIG, json.dumps(origin["config"], indent=2) + "\n")
  for file in sorted((imported / TOKENIZER).glob("*")):
    write_atomic(to / file.name, file.read_bytes())
  left = (path for path in ours if path not in mapping)
  return sorted(path for path in left if not re.fullmatch(peft.SETTINGS, path))


def export_adapter(ours: Weights, imported: pathlib.Path, to: pathlib.Path) -> None:
  """Writes the adapters among the leaves as the peft library does.

  Raises:
    UserError: if there is none, or peft's files cannot hold it.
  """
  origin = read_json(imported / ORIGIN)
  adapters = {path: np.asarray(x) for path, x in peft.adapters(dict(ours)).items()}
  if not adapters:
    raise UserError("there is no adapter among the weights; leave out --adapter")
  if (to / "adapter_config.json").exists():
    raise UserError(f"{to} holds an adapter; remove it or choose another folder")
  name = origin.get("config", {}).get("_name_or_path") or ""
  write_adapter(to, adapters, table(origin), base_model=name)


def _merged(ours: Weights, kept: Mapping[str, Sequence[int | float]]) -> dict[str, LazyTensor]:
  """The leaves with LoRA added to their kernels, each as it is read.

  Args:
    kept: rank and alpha of those that the format itself has a place for, by the kernel's path.
  """
  base = dict(ours)
  for path in ours:
    module = path.removesuffix("lora_a")
    if path.endswith("/lora_a") and not _fits(ours, module, kept):
      base = {p: x for p, x in base.items() if not re.fullmatch(f"{module}lora_.*", p)}
      base[f"{module}kernel"] = _with_lora(ours, module)
  return base


def _fits(ours: Weights, module: str, kept: Mapping[str, Sequence[int | float]]) -> bool:
  rank, alpha = kept.get(f"{module}kernel", (0, 0))
  scales = np.asarray(ours[f"{module}lora_scale"])
  return rank == ours[f"{module}lora_a"].shape[-1] and np.allclose(rank * scales, alpha)


def _with_lora(ours: Weights, module: str) -> LazyTensor:
  names = [f"{module}{leaf}" for leaf in ("kernel", "lora_a", "lora_b", "lora_scale")]
  kernel = ours[names[0]]

  def part(index: Any) -> np.ndarray:
    merged = peft.merge({name: ours[name][index] for name in names})
    return np.asarray(merged[names[0]])

  return LazyTensor(kernel.shape, kernel.dtype, lambda: part(()), part)


def _spec(parts: Parts, ours: Weights) -> tuple[tuple[int, ...], np.dtype]:
  shape = lambda path, layer: ours[path].shape[0 if layer is None else 1 :]
  whole = their_shape({p: (tensor, shape(p, layer)) for p, (tensor, layer) in parts.items()})
  return whole, ours[next(iter(parts))].dtype


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = argparse.ArgumentParser(
    prog="python -m medflax.tools.export_weights", description="Writes weights for other libraries."
  )
  parser.add_argument("folder", type=pathlib.Path, help="an import, or a run's workdir")
  parser.add_argument("--to", type=pathlib.Path, required=True, help="the folder to write")
  add_step(parser)
  parser.add_argument("--like", type=pathlib.Path, help="which of the imports a run started from")
  parser.add_argument("--adapter", action="store_true", help="the adapters alone, as peft's")
  flags = parser.parse_args(argv)
  try:
    ours, imported = read_weights(flags.folder, flags.step, flags.like)
    if flags.adapter:
      export_adapter(ours, imported, flags.to)
    else:
      left = export_weights(ours, imported, flags.to)
      if left:
        print(f"no place for {len(left)} leaves: {', '.join(left)}")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(flags.to)
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
