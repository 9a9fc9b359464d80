"""What the packages of papers give random pairs of answers: Unicode, empty and very long ones.

pip install sacrebleu rouge-score nltk pycocoevalcap
python tests/golden/make_metrics.py --to golden/metrics/random.json
pip install bert-score
python tests/golden/make_metrics.py --bert MINILM --layer 6 --to golden/metrics/random_bert.json

`tests/parity.py golden` then compares; MINILM is the folder of a small BERT, which it reads from
the environment variable of that name. For the developer: the tests need neither torch nor the
weights.
"""

import argparse
import json
import pathlib
import random
import warnings

WORDS = """
the a left right Lung lung lungs heart is are no yes mild moderate effusion, pneumothorax. opacity
X-ray CT MRI T2-weighted 3.5 cm 12 % (see above) naïve œdème Ödem 肺炎 胸部 ﬁbrosis Straße ½ №2
α-fetoprotein 👩‍⚕️ рак न्यूमोनिया e\u0301 \u200b \u2028 -- ... !? <unk> </s> @-@ &amp; " ' ; :
""".replace("\n", " ").split(" ")


def answer(rng: random.Random) -> str:
  """Words, or any characters; now and then nothing at all, or hundreds of words."""
  length = rng.choice((0, 1, 1, 2, 3, 5, 8, 13, 21, 40)) if rng.random() < 0.97 else 400
  if rng.random() < 0.85:
    return " ".join(rng.choice(WORDS) for _ in range(length))
  points = (
    rng.choice((rng.randrange(32, 127), rng.randrange(0xA0, 0xD7FF))) for _ in range(length)
  )
  return "".join(map(chr, points))


def changed(rng: random.Random, text: str) -> str:
  """With some words lost, doubled or replaced."""
  ways = lambda word: rng.choice(([], [word, word], [rng.choice(WORDS)]))
  kept = ([word] if rng.random() < 0.7 else ways(word) for word in text.split(" "))
  return " ".join(word for words in kept for word in words)


def make_pairs(count: int) -> list[dict]:
  """Answers with one to four references, most of them alike."""
  rng = random.Random(0)
  pairs = []
  for _ in range(count):
    candidate = answer(rng)
    alike = lambda text=candidate: changed(rng, text) if rng.random() < 0.8 else answer(rng)
    pairs.append(dict(candidate=candidate, references=[alike() for _ in range(rng.randint(1, 4))]))
  return pairs


def text_scores(pairs: list[dict]) -> dict:
  """By sacrebleu, rouge-score, NLTK and pycocoevalcap (BLEU, CIDEr, ROUGE-L: without Java)."""
  import sacrebleu
  from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu, sentence_bleu
  from pycocoevalcap.bleu.bleu import Bleu
  from pycocoevalcap.cider.cider import Cider
  from pycocoevalcap.rouge.rouge import Rouge
  from rouge_score.rouge_scorer import RougeScorer

  answers = [pair["candidate"] for pair in pairs]
  references = [pair["references"] for pair in pairs]
  firsts = [texts[0] for texts in references]
  kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
  scores = {}
  for name, stem in (("rouge", False), ("rouge_stem", True)):
    found = [RougeScorer(kinds, stem).score(r, p) for p, r in zip(answers, firsts, strict=True)]
    scores[name] = {kind: [list(one[kind]) for one in found] for kind in kinds}
  scores["sacrebleu_sentence"] = [
    sacrebleu.sentence_bleu(p, [r]).score for p, r in zip(answers, firsts, strict=True)
  ]
  whole = sacrebleu.corpus_bleu(answers, [firsts], force=True)
  scores["sacrebleu_corpus"] = {"score": whole.score}
  lower = sacrebleu.corpus_bleu(answers, [firsts], force=True, lowercase=True)
  scores["sacrebleu_corpus_lc"] = lower.score
  scores["sacrebleu_chrf"] = sacrebleu.corpus_chrf(answers, [firsts]).score
  split = [p.lower().split() for p in answers]
  splits = [[r.lower().split() for r in texts] for texts in references]
  both, smooth = list(zip(splits, split, strict=True)), SmoothingFunction().method1
  for n in (1, 2, 3, 4):
    weights = [1 / n] * n
    scores[f"nltk_sentence_bleu{n}"] = [sentence_bleu(rs, p, weights) for rs, p in both]
    scores[f"nltk_sentence_bleu{n}_smooth1"] = [
      sentence_bleu(rs, p, weights, smooth) for rs, p in both
    ]
    scores[f"nltk_corpus_bleu{n}"] = corpus_bleu(splits, split, weights)
  # Its programs take words between single spaces; its tokenizer, in Java, leaves no others.
  theirs = {i: [" ".join(r.lower().split()) for r in rs] for i, rs in enumerate(references)}
  ours = {i: [" ".join(p.lower().split())] for i, p in enumerate(answers)}
  for name, scorer in (("bleu", Bleu(4)), ("cider", Cider()), ("rougeL", Rouge())):
    total, single = scorer.compute_score(theirs, ours)
    scores[f"coco_{name}"] = total if name == "bleu" else float(total)
    scores[f"coco_{name}_sentence"] = (
      [list(map(float, x)) for x in single] if name == "bleu" else (list(map(float, single)))
    )
  return scores


def bert_scores(pairs: list[dict], folder: str, layer: int) -> dict:
  """By bert-score, with the first reference."""
  from bert_score import BERTScorer, utils
  from transformers import AutoTokenizer

  tokenizer = AutoTokenizer.from_pretrained(folder)
  # Its own calls a method that transformers 5 no longer has.
  encode = lambda _, text: tokenizer.encode(
    text.strip(), truncation=True, max_length=tokenizer.model_max_length
  )
  utils.sent_encode = encode
  answers, firsts = zip(*((p["candidate"], p["references"][0]) for p in pairs), strict=True)
  found = {}
  for suffix, idf in (("", False), ("_idf", True)):
    scorer = BERTScorer(
      model_type=folder, num_layers=layer, idf=idf, idf_sents=list(firsts), nthreads=0
    )
    numbers = zip("PRF", scorer.score(list(answers), list(firsts)), strict=True)
    found[f"bertscore_minilm_layer{layer}{suffix}"] = {k: x.tolist() for k, x in numbers}
  ids = {"cand": answers, "ref": firsts}
  found["minilm_input_ids"] = {k: [encode(None, x) for x in texts] for k, texts in ids.items()}
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description="Scores random pairs with the packages of papers.")
  parser.add_argument("--pairs", type=int, default=1000)
  parser.add_argument("--bert", default="", help="a Hugging Face folder: BERTScore alone")
  parser.add_argument("--layer", type=int, default=6)
  parser.add_argument("--to", type=pathlib.Path, required=True)
  flags = parser.parse_args()
  pairs = make_pairs(flags.pairs)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    scores = bert_scores(pairs, flags.bert, flags.layer) if flags.bert else text_scores(pairs)
  flags.to.parent.mkdir(parents=True, exist_ok=True)
  flags.to.write_text(json.dumps({"pairs": pairs} | scores))


if __name__ == "__main__":
  main()
