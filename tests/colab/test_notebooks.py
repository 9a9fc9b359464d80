"""The notebooks run from top to bottom, and what is committed of them is fit to be read."""

import importlib.util
import pathlib
import re

import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MOST_BYTES = 1_200_000  # of all of them: pictures add up

spec = importlib.util.spec_from_file_location("colab_run", ROOT / "colab" / "run.py")
assert spec and spec.loader
colab_run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(colab_run)

NOTEBOOKS = colab_run.notebooks()
URL = re.search(r'^URL = "(.+?)"', (ROOT / "setup.py").read_text(), re.MULTILINE)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """One for all, so that 06 finds the run of 01."""
  return tmp_path_factory.mktemp("colab")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, folder):
  notebook = colab_run.run(path, folder, fast=True)
  assert "image/png" in str(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  again = colab_run.tidied(nbformat.from_dict(notebook), ROOT)
  assert again == notebook
  badge = URL.replace("https://github.com", "https://colab.research.google.com/github")
  assert f"({badge}/blob/main/colab/{path.name})" in notebook.cells[0].source
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1
  shown = "".join(str(cell.outputs) for cell in code)
  assert "image/png" in shown
  assert not re.search(r"Traceback|Warning|/(home|work|tmp|root|usr|content)/", shown)
  assert not re.search(r"\b20\d\d-\d\d-\d\d|\b\d\d:\d\d:\d\d", shown)
  for repository in re.findall(r"https://github.com/[\w-]+/[\w-]+", str(notebook)):
    assert repository == URL


def test_together_they_are_small():
  assert sum(path.stat().st_size for path in NOTEBOOKS) < MOST_BYTES
