r"""Imports a published checkpoint: a file for `config.init`, and the model's section beside it.

python -m medflax.tools.import_weights hugging_face LLAMA_FOLDER --to DIR
python -m medflax.tools.import_weights med_flamingo model.pt \
  --lm LLAMA_FOLDER --vision open_clip_model.safetensors --to DIR

Nothing of the checkpoint is executed, and no more than a layer's tensor is in memory at a time.
DIR gets `weights.safetensors`, `config.json` (sections of `config.model`), the checkpoint's
`tokenizer` if it has one, `peft.json` (sections of `config.peft`) of an adapter, and `origin.json`,
by which `medflax.tools.export_weights` writes the checkpoint back.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
import tqdm

from medflax.pretrained.added_tokens import add_tokens
from medflax.pretrained.checkpoint import Checkpoint, Options
from medflax.pretrained.files import write_safetensors
from medflax.pretrained.leaves import abstract_leaves
from medflax.pretrained.mapping import check, pieces
from medflax.pretrained.peft_files import read_adapter, sections
from medflax.pretrained.sources import SOURCES
from medflax.utils import UserError, pick, write_atomic

WEIGHTS, CONFIG, ORIGIN = "weights.safetensors", "config.json", "origin.json"
TOKENIZER, PEFT = "tokenizer", "peft.json"
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
  leaves = abstract_leaves(checkpoint.sections, **checkpoint.beside)
  check(checkpoint.mapping, leaves, checkpoint.tensors, ignore=checkpoint.ignore)
  target = np.dtype(pick(DTYPES, dtype, "dtype")) if dtype else None
  source = lambda path: checkpoint.tensors[checkpoint.mapping[path].keys[0]].dtype
  specs = {path: (tuple(leaf.shape), target or source(path)) for path, leaf in leaves.items()}
  specs |= {path: (leaf.shape, leaf.dtype) for path, leaf in checkpoint.adapters.items()}
  total = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in specs.values())

  def read(path: str) -> Iterable[np.ndarray]:
    if path in checkpoint.adapters:
      return [checkpoint.adapters[path]]
    return pieces(checkpoint.mapping[path], leaves[path].shape, checkpoint.tensors)

  with tqdm.tqdm(total=total, unit="B", unit_scale=True, disable=not progress) as bar:
    for written in write_safetensors(folder / WEIGHTS, specs, read):
      bar.update(written - bar.n)
  write_atomic(folder / CONFIG, json.dumps(checkpoint.sections, indent=2) + "\n")
  if checkpoint.adapters:
    write_atomic(folder / PEFT, json.dumps(sections(checkpoint.adapters), indent=2) + "\n")
  for name, content in checkpoint.tokenizer.items():
    write_atomic(folder / TOKENIZER / name, content)
  write_atomic(folder / ORIGIN, json.dumps(checkpoint.origin, indent=2) + "\n")


def with_adapter(checkpoint: Checkpoint, folder: pathlib.Path) -> Checkpoint:
  """The checkpoint with an adapter that the peft library has trained on it.

  Raises:
    UserError: if the adapter is of another model or of a kind that is not known.
  """
  leaves = abstract_leaves(checkpoint.sections, **checkpoint.beside)
  adapters = read_adapter(folder, checkpoint.mapping, leaves)
  return dataclasses.replace(checkpoint, adapters=adapters)


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
  parser.add_argument(
    "--add-tokens", type=int, default=0, help="so many rows for new tokens, the mean of the others"
  )
  parser.add_argument("--adapter", type=pathlib.Path, help="a folder of the peft library's")
  flags = parser.parse_args(argv)
  options = Options(lm=flags.lm, vision=flags.vision, xattn_every=flags.xattn_every)
  try:
    checkpoint = pick(SOURCES, flags.source, "source").open(flags.path, options)
    if flags.add_tokens:
      checkpoint = add_tokens(checkpoint, flags.add_tokens)
    if flags.adapter:
      checkpoint = with_adapter(checkpoint, flags.adapter)
    import_weights(checkpoint, flags.to, flags.dtype)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  if flags.add_tokens:
    size = checkpoint.sections["lm"]["vocab_size"]
    print(f"the last {flags.add_tokens} of {size} tokens are new, their rows the others' mean")
  print(f"{flags.to / WEIGHTS}: set config.init to it, and config.model as in {CONFIG}")
  if checkpoint.adapters:
    print(f"{flags.to / PEFT}: set config.peft as in it")
  if checkpoint.tokenizer:
    print(f"{flags.to / TOKENIZER}: set config.tokenizer.path to it")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
