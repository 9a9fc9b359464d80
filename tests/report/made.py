"""Workdirs and evaluations as runs leave them, and pages as a browser reads them."""

import html.parser
import json
import math
import pathlib

import numpy as np
from PIL import Image

SHOTS = (0, 1, 2, 4, 8)
WORDS = ("dax", "wug", "blick", "zorp", "fep", "tove")
FINDINGS = ("round opacity", "wedge", "ring lesion", "calcification", "effusion")


def make_workdir(path: pathlib.Path, seed: int = 0) -> pathlib.Path:
  """A workdir as a run on the phantoms leaves it."""
  rng = np.random.default_rng(seed)
  config = {
    "name": "flamingo_med",
    "variant": "tiny",
    "seed": seed,
    "data": {"source": "phantom", "image_size": [32, 32]},
    "train": {"num_steps": 1200, "batch_size": 64},
    "optimizer": {"lr": 1e-3, "schedule": "cosine"},
  }
  write_json(path / "config.json", config)
  environment = {
    "git": "0123456789ab",
    "python": "3.11.7",
    "jax": "0.10.2",
    "device": "cpu",
    "num_devices": 1,
    "parameters": 1_234_567,
    "trainable_parameters": 1_234_567,
  }
  write_json(path / "environment.json", environment)

  final = {0: 0.49, 1: 0.64, 2: 0.79, 4: 0.93, 8: 0.97}
  lines = []
  for step in range(10, 1201, 10):
    loss = 0.35 + 2.6 * math.exp(-step / 180) + 0.12 * rng.standard_normal()
    scalars = {"train/loss": loss, "train/samples_per_s": 402 + rng.normal(0, 9)}
    lines.append({"step": step, **scalars, "train/data_wait": 0.011, "train/seconds": step / 5})
    seen = {"data/binding/documents": 41 * step, "data/binding/tokens": 977 * step}
    lines.append({"step": step, **seen, "data/tokens": 977 * step, "data/token_slots": 1024 * step})
    if step % 300 == 0:
      learnt = 1 - math.exp(-step / 260)
      values = {k: 0.5 + (value - 0.5) * learnt for k, value in final.items()}
      names = {f"binding/{k}shot/exact_match": value for k, value in values.items()}
      lines.append({"step": step, "perplexity/loss": loss + 0.04, **names})
  write_lines(path / "metrics.jsonl", lines)

  metrics = {}
  for shots, value in final.items():
    metrics[f"binding/{shots}shot/exact_match"] = measurement(value)
    metrics[f"binding/{shots}shot/exact_match@shuffled"] = measurement(rng.normal(0.5, 0.01))
    metrics[f"binding/{shots}shot/exact_match@no_image"] = measurement(rng.normal(0.5, 0.01))
    metrics[f"binding/{shots}shot/chance"] = measurement(0.5)
    metrics[f"binding/{shots}shot/majority"] = measurement(0.07)
  folder = path / "evals/binding/1200"
  samples = [_binding_sample(rng, folder, index) for index in range(40)]
  write_evaluation_files(folder, "binding", metrics, samples)

  folder = path / "evals/volumes/1200"
  metrics = {f"volumes/{k}shot/exact_match": measurement(0.9 + k / 100) for k in (0, 4)}
  metrics |= {f"volumes/{k}shot/chance": measurement(0.2) for k in (0, 4)}
  samples = [_volume_sample(rng, folder, index) for index in range(6)]
  write_evaluation_files(folder, "volumes", metrics, samples)

  samples = [{"id": f"binding-val-{i:05d}", "group": f"g{i}", "nll": 1.5} for i in range(3)]
  metrics = {"perplexity/loss": measurement(0.41), "perplexity/per_token": measurement(1.507)}
  write_evaluation_files(path / "evals/perplexity/1200", "all", metrics, samples)
  write_lines(
    path / "skipped.jsonl",
    [{"line": 17, "id": "case-0031", "reason": "images/ct-17.png: the PNG ends early"}],
  )
  write_lines(path / "noted.jsonl", [{"path": "ct/series-3", "notes": "gantry tilt 12.0°"}])
  return path


def measurement(value: float, n: int = 512) -> dict:
  stderr = math.sqrt(abs(value * (1 - value)) / n)
  ci95 = [value - 1.96 * stderr, value + 1.96 * stderr]
  return {"value": value, "stderr": stderr, "ci95": ci95, "n": n}


def _binding_sample(rng: np.random.Generator, folder: pathlib.Path, index: int) -> dict:
  shots = SHOTS[index % len(SHOTS)]
  pair = [str(word) for word in rng.choice(WORDS, 2, replace=False)]
  question = "What is this called? Choose one of the two words."
  support = [
    {
      "id": f"s{index}-{shot}",
      "question": question,
      "answer": pair[shot % 2],
      "media": [_picture(rng, folder, f"{index}-s{shot}", finding=shot % 2)],
    }
    for shot in range(shots)
  ]
  right = bool(rng.random() < 0.5 + shots / 20)
  return {
    "id": f"binding-test-{index:05d}",
    "group": f"g{index}",
    "task": "binding",
    "num_shots": shots,
    "condition": "image",
    "question": question,
    "answer": pair[0],
    "prediction": pair[0] if right else pair[1],
    "correct": right,
    "stop": "end",
    "choices": pair,
    "meta": {},
    "media": [_picture(rng, folder, f"{index}-q", finding=0)],
    "support": support,
  }


def _volume_sample(rng: np.random.Generator, folder: pathlib.Path, index: int) -> dict:
  right = index % 3 > 0
  answer = str(rng.choice(FINDINGS))
  return {
    **_binding_sample(rng, folder, 0),
    "id": f"volume-test-{index:05d}",
    "task": "vqa",
    "num_shots": 0,
    "question": "Which finding does this volume show?",
    "answer": answer,
    "prediction": answer if right else "ring",
    "correct": right,
    "choices": list(FINDINGS),
    "support": [],
    "media": [_picture(rng, folder, f"v{index}", finding=index % 2, slices=8)],
  }


def _picture(
  rng: np.random.Generator, folder: pathlib.Path, stem: str, *, finding: int, slices: int = 1
) -> str:
  """A body, and in it a bright disc (finding 0) or ring (finding 1)."""
  y, x = np.mgrid[-1:1:48j, -1:1:48j]
  center_x, center_y = rng.uniform(-0.35, 0.35, 2)
  strip = []
  for depth in np.linspace(-0.5, 0.5, slices) if slices > 1 else [0.0]:
    body = np.hypot(x / 0.85, y / 0.7) < 1
    radius = np.hypot(x - center_x, y - center_y) + abs(depth) * 0.4
    shape = radius < 0.26 if finding == 0 else (radius > 0.16) & (radius < 0.3)
    noise = rng.normal(0, 9, x.shape)
    strip.append(np.clip(18 + 70 * body + 110 * (shape & body) + noise, 0, 255))
  (folder / "media").mkdir(parents=True, exist_ok=True)
  name = f"media/{stem}.png"
  Image.fromarray(np.concatenate(strip, axis=1).astype(np.uint8)).save(folder / name)
  return name


def write_evaluation_files(folder: pathlib.Path, task: str, metrics: dict, samples: list) -> None:
  step = int(folder.name)
  results = {"task": task, "task_version": "1", "step": step, "git": "0123456789ab"}
  results |= {"metrics": metrics, "notes": ["8shot@shuffled leaves out 3 of 512 questions"]}
  write_json(folder / "results.json", results)
  write_lines(folder / "samples.jsonl", samples)


def write_json(path: pathlib.Path, content: dict) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))


def write_lines(path: pathlib.Path, records: list[dict]) -> None:
  path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")


def make_scored_evaluation(folder: pathlib.Path, num_questions: int = 30) -> pathlib.Path:
  """evals/plane/400 of a protocol: scored candidates, two seeds, all controls, slices."""
  rng = np.random.default_rng(0)
  shots, seeds, planes = (0, 4), (0, 1), ("axial", "coronal", "sagittal")
  skill = {"image": 2.0, "shuffled": 0.3, "no_image": 0.0, "text_only": 0.1}
  samples, metrics = [], {}
  for count in shots:
    for condition, strength in skill.items():
      key = f"{count}shot/exact_match" + ("" if condition == "image" else f"@{condition}")
      value = 0.33 + 0.25 * strength + 0.02 * count
      metrics[f"plane/{key}"] = measurement(value, num_questions)
      spread = {"value": value, "stderr": 0.04, "ci95": [value - 0.05, value + 0.05], "n": 2}
      metrics[f"plane/{key}#seeds"] = spread
      metrics[f"plane/{key.replace('exact_match', 'cider')}"] = measurement(value, 30) | {
        "value": 3.5,
        "ci95": [3.1, 3.9],
      }
      for location in ("Head", "Spine"):
        metrics[f"plane/{location}/{key}"] = measurement(value, num_questions // 2)
      for seed in seeds:
        for index in range(num_questions):
          logits = rng.standard_normal(3)
          answer = index % 3
          logits[answer] += strength
          samples.append(
            _scored_sample(rng, folder, index, count, condition, seed, planes, answer, logits)
          )
    metrics[f"plane/{count}shot/chance"] = measurement(1 / 3, num_questions)
    metrics[f"plane/{count}shot/majority"] = measurement(0.4, num_questions)
  settings = {
    "task": "plane",
    "split": "test",
    "protocol": {"name": "medpix_plane", "version": 2},
    "dataset": {"name": "medpix", "version": "1.0"},
    "decoding": {"type": "beam", "num_beams": 5, "max_new_tokens": 8},
    "demonstrations": {"type": "image_text", "order": "nearest_last", "seeds": [0, 1]},
    "prompt": {"question": "Question: {question} Answer:", "answer": " {answer}."},
    "scorers": {"exact_match": "v1"},
    "programs": {"embed": 1, "generate": 2},
  }
  write_evaluation_files(folder, "plane", metrics, samples)
  results = json.loads((folder / "results.json").read_text())
  write_json(folder / "results.json", results | settings)
  return folder


def _scored_sample(rng, folder, index, shots, condition, seed, planes, answer, logits) -> dict:
  probabilities = np.exp(logits) / np.exp(logits).sum()
  best = int(np.argmax(logits))
  pictured = condition == "image" and index < 3 and seed == 0
  support = [
    {
      "id": f"demo-{shot}",
      "question": "Which plane is this?",
      "answer": planes[shot % 3],
      "media": [_picture(np.random.default_rng(shot), folder, f"demo{shot}", finding=shot % 2)]
      if pictured
      else [],
    }
    for shot in range(shots)
  ]
  return {
    "id": f"q{index}",
    "group": f"patient-{index // 2}",
    "task": "plane",
    "num_shots": shots,
    "condition": condition,
    "seed": seed,
    "question": "Which plane is this?",
    "answer": planes[answer],
    "prediction": planes[best].title() if index else "oblique, I think",
    "correct": best == answer and index > 0,
    "stop": "stop_string" if index % 5 else "length",
    "choices": list(planes),
    "meta": {"location": ("Head", "Spine")[index % 2], "age": 40 + index},
    "scores": {"exact_match": float(best == answer), "cider": float(10 * probabilities[answer])},
    "candidates": [
      {"text": text, "logprob": float(logit), "probability": float(p)}
      for text, logit, p in zip(planes, logits, probabilities, strict=True)
    ],
    "media": [_picture(rng, folder, f"{index}-{seed}", finding=answer % 2)] if pictured else [],
    "support": support,
  }


class Page(html.parser.HTMLParser):
  """What a page loads and links to, its scripts by type, the tags that are not closed in order."""

  def __init__(self, content: str):
    super().__init__()
    self.loads, self.links, self.tags, self.open, self.unbalanced = [], [], [], [], []
    self.scripts: dict[str, str] = {}
    self.attributes: set[str] = set()
    self.feed(content)
    self.close()

  @property
  def data(self) -> dict:
    """The JSON of its gallery."""
    return json.loads(self.scripts["application/json"])

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes |= {name for name, _ in attrs}
    self.loads += [value for name, value in attrs if name in ("src", "srcset", "data")]
    self.links += [value for name, value in attrs if name == "href"]
    if tag == "script":
      self.scripts[dict(attrs).get("type", "")] = ""
    if tag not in ("meta", "img", "br"):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)

  def handle_endtag(self, tag):
    if not self.open or self.open.pop() != tag:
      self.unbalanced.append(tag)

  def handle_data(self, data):
    if self.open and self.open[-1] == "script":
      self.scripts[list(self.scripts)[-1]] += data
