r"""How soon a run makes its first step, cold and warm, and how long a save holds up the loop.

python benchmarks/start_up.py --workdir DIR -- --config=configs/flamingo_med.py \
  --config.train.num_steps=60 --config.train.log_every=10 --config.checkpoint.every=20 \
  --config.evals='{}'

The cold start compiles, and is stopped behind its first step; the warm one is the same command
again, which goes on from there with the programs that the first has left in the workdir. A save
that begins before the last one is on disk waits for it: leave steps enough between them.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time

FIRST = re.compile(r"first step after ([0-9.]+) s")


def start(command: list[str], workdir: pathlib.Path, *, stop: bool) -> dict[str, float]:
  """Seconds of a run from the command to its first step, and those of the first step alone.

  `stop` ends it there.
  """
  full = [sys.executable, "-m", "medflax.main", *command, f"--workdir={workdir}"]
  own = {key: x for key, x in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
  began, found, lines = time.monotonic(), {}, []
  options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=own)
  with subprocess.Popen(full, **options) as process:
    for line in process.stdout:
      lines.append(line)
      if match := FIRST.search(line):
        found = {"to_first_step": time.monotonic() - began, "first_step": float(match[1])}
        if stop:
          process.send_signal(signal.SIGTERM)
  if process.returncode:
    sys.exit("".join(lines[-30:]))
  return found


def stalls(workdir: pathlib.Path) -> dict[str, float]:
  """Seconds of a step and of a save, medians over the windows without and with one.

  A save is counted in the window after it. What the devices still compute when it begins is not
  counted: that goes on.
  """
  rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  rows = [row for row in rows if "train/step_seconds" in row]
  every = json.loads((workdir / "config.json").read_text())["train"]["log_every"]
  saving = [row for row in rows if row["train/save_wait"] > 0]
  steps = [row["train/step_seconds"] for row in rows if row not in saving]
  saves = [row["train/save_wait"] * row["train/step_seconds"] * every for row in saving]
  if not steps or not saves:
    sys.exit("no window has a save, or all have: train.log_every < checkpoint.every < num_steps")
  return {"step": statistics.median(steps), "save": statistics.median(saves)}


def main() -> int:
  """Returns 0 if the warm first step takes a quarter of the cold one, and a save one step."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="an empty folder")
  parser.add_argument("command", nargs="+")
  flags = parser.parse_args()
  flags.workdir.mkdir(parents=True, exist_ok=True)
  workdir, runs = flags.workdir / "run", {}
  print(f"{'start':<8}{'to first step':>15}{'first step':>12}   (seconds)")
  for name, stop in (("cold", True), ("warm", False)):
    runs[name] = start(flags.command, workdir, stop=stop)
    print(f"{name:<8}{runs[name]['to_first_step']:>15.1f}{runs[name]['first_step']:>12.1f}")
  runs["ratio"] = runs["warm"]["first_step"] / runs["cold"]["first_step"]
  runs["stall"] = stalls(workdir)
  print(f"warm / cold first step: {runs['ratio']:.2f}")
  print(
    f"a step takes {runs['stall']['step']:.3f} s, a save {runs['stall']['save']:.3f} s of the loop"
  )
  print(json.dumps(runs))
  return int(runs["ratio"] > 0.25 or runs["stall"]["save"] > runs["stall"]["step"])


if __name__ == "__main__":
  sys.exit(main())
