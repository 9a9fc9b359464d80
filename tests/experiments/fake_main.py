"""Stands in for medflax.main: leaves a run's files behind, without training.

It takes the lock as a run does, notes every start, and goes on from its last "checkpoint". A run
whose name ends in `FAKE_SLOW` takes minutes.
"""

import json
import os
import pathlib
import sys
import time

import numpy as np

from medflax import config as config_lib
from medflax import workdir as workdir_lib
from medflax.main import parse_flags

NUM_STEPS = 4  # that the fake pretends to make


def train(argv):
  flags, overrides = parse_flags(argv)
  config = config_lib.load_config(flags.config, overrides)
  workdir = pathlib.Path(flags.workdir)
  workdir_lib.check(workdir, config)
  with workdir_lib.opened(workdir, config, {"trainable_parameters": 1234, "parameters": 2000}):
    with (workdir / "started.txt").open("a") as file:
      file.write("start\n")
    if config.train.batch_size == 13:
      print("error: 13 is not liked")
      return 2
    progress = workdir / "progress.txt"
    for step in range(int(progress.read_text()) if progress.exists() else 0, NUM_STEPS):
      progress.write_text(str(step + 1))
      time.sleep(60 * workdir.name.endswith(os.environ.get("FAKE_SLOW", "never")))
    finish(workdir, config)
  return 0


def finish(workdir, config, rate=None, judged=None):
  """The files of a finished run; `rate`: how often its answers are right at the step `judged`."""
  last = config.train.num_steps
  judged = judged or last
  rate = rate if rate is not None else 0.5 + 0.3 * (config.data.media_rule == "next_image")
  rng = np.random.default_rng(config.seed)
  for name in config.evals:
    folder = workdir / "evals" / name / str(judged)
    folder.mkdir(parents=True, exist_ok=True)
    samples, metrics = [], {f"{name}/loss": measurement(1 - rate)}
    for shots in (0, 4):
      right = rng.random(40) < (rate if shots else 0.5)
      metrics[f"{name}/{shots}shot/exact_match"] = measurement(float(right.mean()))
      samples += [sample(i, shots, bool(r)) for i, r in enumerate(right)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    results = {"step": judged, "metrics": metrics, "scorers": {}}
    (folder / "results.json").write_text(json.dumps(results))
  saved = workdir / "checkpoints" / str(last)
  saved.mkdir(parents=True, exist_ok=True)
  (saved / "files.json").write_text("{}")
  (workdir / "metrics.jsonl").write_text(json.dumps({"step": last, "train/seconds": 90.0}) + "\n")


def measurement(value):
  return {"value": value, "stderr": 0.05, "ci95": [value - 0.1, value + 0.1], "n": 40}


def sample(index, shots, right):
  return {
    **dict(id=f"q{index}", group=f"g{index // 2}", task="binding", num_shots=shots),
    **dict(condition="image", question="What?", answer="a", prediction="a" if right else "b"),
    **dict(correct=right, scores={"exact_match": float(right)}, meta={}),
  }


if __name__ == "__main__":
  sys.exit(train(sys.argv[1:]))
