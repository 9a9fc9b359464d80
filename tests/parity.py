"""Compares our models with the golden cases in a folder, and prints a table.

python tests/parity.py DIR

A case is `<folder>/<variant>.{safetensors,npz,json}`: another implementation's weights under its
own names, what it was given and what it returned. Every size is read from these files. The exit
code is 0 only if every folder is known and every comparison passes.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.golden_cases import (
  captioners,
  decoders,
  encoder_decoders,
  encoders,
  lora,
  metrics,
  openflamingo,
  systems_beyond,
  systems_medvint,
  systems_radfm,
  vision,
)
from tests.golden_cases.base import Case, Check, Result

MODULES = (
  captioners,
  decoders,
  encoder_decoders,
  encoders,
  lora,
  metrics,
  openflamingo,
  systems_beyond,
  systems_medvint,
  systems_radfm,
  vision,
)
CHECKS: dict[str, Check] = {name: check for m in MODULES for name, check in m.CHECKS.items()}
COLUMNS = "{:<40} {:<52} {:>9} {:>6} {:>5}"


def find_cases(root: pathlib.Path) -> list[Case]:
  """Every variant, by folder and name: each has a file of arrays, or a JSON file alone."""
  paths = [*root.glob("*/*.npz"), *root.glob("*/*.json")]
  names = {(path.parent, path.stem) for path in paths if not path.stem.endswith(".config")}
  return [Case(folder, variant) for folder, variant in sorted(names)]


def run(case: Case) -> list[Result]:
  """The comparisons of a case; whatever goes wrong is one that fails."""
  results = []
  try:
    results.extend(CHECKS[case.folder.name](case))
  except Exception as error:  # the table goes on, and tells
    message = " ".join(str(error).split()) or "no message"
    results.append(Result(f"{type(error).__name__}: {message[:200]}", float("inf")))
  return results or [Result("nothing was compared", float("inf"))]


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0 if all pass, else 1."""
  parser = argparse.ArgumentParser(description="Compares our models with golden cases.")
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--only", default="", help="cases whose folder/variant contains this")
  flags = parser.parse_args(argv)
  cases = [c for c in find_cases(flags.folder) if flags.only in f"{c.folder.name}/{c.variant}"]
  folders = {path.name for path in flags.folder.glob("*/") if flags.only.split("/")[0] in path.name}
  unknown = sorted(folders - CHECKS.keys())
  print(COLUMNS.format("case", "compared", "max error", "tokens", "pass"))
  results = []
  for case in cases:
    if case.folder.name in CHECKS:
      for result in run(case):
        results.append(result)
        tokens = {None: "", True: "equal", False: "DIFFER"}[result.tokens_equal]
        error = f"{result.error:.1e}" if result.tokens_equal is None else ""
        verdict = "yes" if result.passed else "NO"
        name = f"{case.folder.name}/{case.variant}"
        print(COLUMNS.format(name, result.what, error, tokens, verdict), flush=True)
      if left_out := case.left_out():
        print(f"  not compared: {', '.join(left_out)}")
  failed = sum(not result.passed for result in results)
  print(f"{len(results) - failed} of {len(results)} comparisons pass, {len(cases)} cases")
  if unknown:
    print(f"no check is known for: {', '.join(unknown)}")
  return int(failed > 0 or not results or bool(unknown))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
