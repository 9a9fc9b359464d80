"""The comparison with given scores: a JSON file alone is a case, and a wrong number fails."""

import json

import numpy as np
import pytest

from medflax.metrics.scorers import METRICS
from tests import parity


@pytest.fixture
def content():
  predictions, references = ["left lung", "no", ""], [["the left lung", "lung"], ["yes"], ["no"]]
  firsts = [texts[:1] for texts in references]
  rouge = METRICS["rouge1"].samples(predictions, firsts)
  pairs = zip(predictions, references, strict=True)
  return {
    "pairs": [dict(candidate=text, references=texts) for text, texts in pairs],
    "rouge": {"rouge1": [[1, 2 / 3, rouge[0]], [0, 0, 0], [0, 0, 0]]},
    "coco_cider": METRICS["cider"].corpus(predictions, references),
    "coco_rougeL_sentence": METRICS["coco_rougeL"].samples(predictions, references).tolist(),
    "sacrebleu_corpus": {"score": METRICS["sacrebleu"].corpus(predictions, firsts)},
    "bertscore_minilm_layer1": {"P": [0.1, 0.2, 0.3]},
    "note": "of the numbers",
  }


def run(folder, content, capsys):
  (folder / "metrics").mkdir(exist_ok=True)
  (folder / "metrics" / "pairs.json").write_text(json.dumps(content))
  status = parity.main([str(folder)])
  return status, capsys.readouterr().out


def test_equal_numbers_pass_and_what_needs_weights_is_told(tmp_path, content, capsys, monkeypatch):
  monkeypatch.delenv("MINILM", raising=False)
  status, out = run(tmp_path, content, capsys)
  assert status == 0 and "4 of 4 comparisons pass, 1 cases" in out
  assert "not compared: bertscore_minilm_layer1\n" in out


@pytest.mark.parametrize("wrong", [0.3, float("nan"), [0.1, 0.2]])
def test_another_number_fails(tmp_path, content, capsys, wrong):
  status, out = run(tmp_path, content | {"coco_cider": wrong}, capsys)
  assert status == 1 and "3 of 4 comparisons pass" in out


def test_a_file_of_arrays_is_the_matching_alone(tmp_path, capsys):
  rng = np.random.default_rng(0)
  arrays = {f"in.{side}_emb": rng.uniform(size=(1, 3, 2)) for side in ("hyp", "ref")}
  arrays |= {
    f"in.{side}_{x}": np.ones((1, 3), int) for side in ("hyp", "ref") for x in ("mask", "idf")
  }
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  similar = (unit(arrays["in.hyp_emb"]) @ unit(arrays["in.ref_emb"]).transpose(0, 2, 1))[0]
  precision, recall = similar.max(axis=1).mean(), similar.max(axis=0).mean()
  f1 = 2 * precision * recall / (precision + recall)
  scores = dict(zip("PRF", (precision, recall, f1), strict=True))
  arrays |= {f"out.{name}{suffix}": [x] for name, x in scores.items() for suffix in ("", "_idf")}
  (tmp_path / "metrics").mkdir()
  floats = {k: np.asarray(x, np.float32) if "mask" not in k else x for k, x in arrays.items()}
  np.savez(tmp_path / "metrics" / "cosine.npz", **floats)
  assert parity.main([str(tmp_path)]) == 0
  assert "6 of 6 comparisons pass" in capsys.readouterr().out
