"""Writes imported weights back under the names and in the layout they came in.

python -m medflax.tools.export_weights IMPORTED --to DIR

IMPORTED is a folder that `medflax.tools.import_weights` has written. DIR gets
`model.safetensors` and, of a Hugging Face model, its config.json and tokenizer: transformers
loads them. Rows of tokens that the import added are left out.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import safetensors
import tqdm

from medflax.pretrained import load_weights
from medflax.pretrained.checkpoint import read_json
from medflax.pretrained.files import write_safetensors
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Tensor, split, their_shape, to_theirs
from medflax.pretrained.sources import table
from medflax.tools.import_weights import ORIGIN, TOKENIZER, WEIGHTS
from medflax.utils import UserError, write_atomic

MODEL, CONFIG = "model.safetensors", "config.json"
Parts = Mapping[str, tuple[Tensor, int | None]]


def export_weights(folder: pathlib.Path, to: pathlib.Path, *, progress: bool = True) -> None:
  """Writes a foreign checkpoint tensor by tensor, from single layers of ours.

  Args:
    folder: an import.
    to: must not hold a checkpoint yet.

  Raises:
    UserError: if `folder` is no import, or there is a checkpoint in `to`.
  """
  if (to / MODEL).exists():
    raise UserError(f"{to / MODEL} exists; remove it or choose another folder")
  origin, ours = read_json(folder / ORIGIN), load_weights(folder / WEIGHTS)
  mapping = {path: tensor for path, tensor in table(origin).items() if path in ours}
  if not mapping:
    raise UserError(f"{folder / WEIGHTS} has none of the leaves that {ORIGIN} tells of")
  theirs = split(mapping)
  specs = {key: _spec(parts, ours) for key, parts in theirs.items()}
  for key, rows in origin.get("rows", {}).items():
    (_, *inner), dtype = specs[key]
    specs[key] = (rows, *inner), dtype

  def pieces(key: str) -> Iterator[np.ndarray]:
    parts = theirs[key]
    layers = {path: _layer(folder / WEIGHTS, path, layer) for path, (_, layer) in parts.items()}
    whole = to_theirs({path: tensor for path, (tensor, _) in parts.items()}, layers)[key]
    yield whole[: specs[key][0][0]] if whole.ndim else whole

  total = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in specs.values())
  with tqdm.tqdm(total=total, unit="B", unit_scale=True, disable=not progress) as bar:
    for written in write_safetensors(to / MODEL, specs, pieces, metadata={"format": "pt"}):
      bar.update(written - bar.n)
  if "config" in origin:
    write_atomic(to / CONFIG, json.dumps(origin["config"], indent=2) + "\n")
  for file in sorted((folder / TOKENIZER).glob("*")):
    write_atomic(to / file.name, file.read_bytes())


def _spec(parts: Parts, ours: Mapping[str, LazyTensor]) -> tuple[tuple[int, ...], np.dtype]:
  shape = lambda path, layer: ours[path].shape[0 if layer is None else 1 :]
  whole = their_shape({p: (tensor, shape(p, layer)) for p, (tensor, layer) in parts.items()})
  return whole, ours[next(iter(parts))].dtype


def _layer(file: pathlib.Path, path: str, layer: int | None) -> np.ndarray:
  with safetensors.safe_open(file, "numpy") as weights:
    return weights.get_tensor(path) if layer is None else weights.get_slice(path)[layer]


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = argparse.ArgumentParser(
    prog="python -m medflax.tools.export_weights", description="Writes imported weights back."
  )
  parser.add_argument("folder", type=pathlib.Path, help="what import_weights has written")
  parser.add_argument("--to", type=pathlib.Path, required=True, help="the folder to write")
  flags = parser.parse_args(argv)
  try:
    export_weights(flags.folder, flags.to)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(flags.to / MODEL)
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
