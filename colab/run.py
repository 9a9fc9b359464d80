"""Runs the notebooks of this folder from top to bottom, and keeps what they show.

python colab/run.py 01 04        # writes the outputs into these notebooks
python colab/run.py --fast       # small settings, nothing is written: what the tests do

All of them run in one fresh folder, one after the other: what 01 has trained, 06 finds. With
`--fast` the cell that is tagged `parameters` is replaced by the notebook's
`metadata.medflax_fast`.
"""

import argparse
import base64
import io
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Sequence

import nbformat
import PIL.Image
from nbclient import NotebookClient

COLAB = pathlib.Path(__file__).resolve().parent
FAST = "medflax_fast"
PNG = "image/png"
TIMEOUT = 1800  # seconds, of a cell


def notebooks(names: Sequence[str] = ()) -> list[pathlib.Path]:
  """The notebooks whose names begin with one of `names`; all without any."""
  starts = tuple(names or [""])
  return [path for path in sorted(COLAB.glob("*.ipynb")) if path.name.startswith(starts)]


def run(path: pathlib.Path, folder: pathlib.Path, *, fast: bool = False) -> nbformat.NotebookNode:
  """Executes a notebook in `folder`, which gets links to what notebooks use of the checkout.

  Raises:
    CellExecutionError: if a cell fails.
  """
  notebook = nbformat.read(path, as_version=4)
  if not (folder / "configs").exists():
    (folder / "configs").symlink_to(COLAB.parent / "configs")
  for cell in notebook.cells:
    if fast and "parameters" in cell.metadata.get("tags", ()):
      cell.source = notebook.metadata[FAST]
  resources = {"metadata": {"path": str(folder)}}
  client = NotebookClient(
    notebook, timeout=TIMEOUT, kernel_name="python3", record_timing=False, resources=resources
  )
  client.execute(env=environment(folder))
  return tidied(notebook, folder)


def environment(folder: pathlib.Path) -> dict[str, str]:
  """Nothing of the user's settings and history; programs are compiled once for all notebooks."""
  return os.environ | {
    "PYTHONPATH": str(COLAB.parent),
    "IPYTHONDIR": str(folder / ".ipython"),
    "JAX_COMPILATION_CACHE_DIR": str(folder / ".jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else it warns of frozen modules
  }


def tidied(notebook: nbformat.NotebookNode, folder: pathlib.Path) -> nbformat.NotebookNode:
  """Without what depends on machine and day, and without progress bars, which go to stderr."""
  metadata = {name: x for name, x in notebook.metadata.items() if name == FAST}
  metadata["kernelspec"] = dict(name="python3", display_name="Python 3", language="python")
  notebook.metadata = nbformat.from_dict(metadata)
  for cell in notebook.cells:
    tags = cell.metadata.get("tags")
    cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
    if "outputs" in cell:
      cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    for output in cell.get("outputs", ()):
      if "text" in output:
        output.text = re.sub(f"({re.escape(str(folder))}|{COLAB.parent})/?", "", output.text)
      if PNG in output.get("data", ()):
        output.data[PNG] = smaller(output.data[PNG])
      if "execution_count" in output:
        output.execution_count = None
    if "execution_count" in cell:
      cell.execution_count = None
  return notebook


def smaller(png: str) -> str:
  """A PNG in base64 with 256 colours, which takes a third of the room."""
  image = PIL.Image.open(io.BytesIO(base64.b64decode(png)))
  if image.mode == "P":
    return png
  file = io.BytesIO()
  image.convert("RGB").quantize().save(file, "PNG", optimize=True)
  return base64.b64encode(file.getvalue()).decode()


def main(argv: Sequence[str]) -> None:
  """Runs what the command line names."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("names", nargs="*", help="how their names begin; default: all")
  parser.add_argument("--fast", action="store_true", help="small settings, nothing is written")
  flags = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as folder:
    for path in notebooks(flags.names):
      print(path.name, flush=True)
      notebook = run(path, pathlib.Path(folder), fast=flags.fast)
      if not flags.fast:
        nbformat.write(notebook, path)


if __name__ == "__main__":
  main(sys.argv[1:])
