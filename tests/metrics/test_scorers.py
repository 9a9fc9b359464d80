"""Every metric by name: the libraries' numbers, empty and long and foreign answers, mistakes."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflax.metrics.base import Metric
from medflax.metrics.rouge import rouge
from medflax.metrics.scorers import METRICS, make_metrics
from medflax.utils import UserError

WORD = st.sampled_from(["the", "left", "Lung.", "lungs", "is", "naïve", "№2", "肺炎", "3.5", "."])
ANSWER = st.lists(WORD, max_size=7).map(" ".join) | st.text(max_size=8)
PAIRS = st.lists(
  st.tuples(ANSWER, st.lists(ANSWER, min_size=1, max_size=3)), min_size=1, max_size=4
)
TOP = {"cider": 10} | dict.fromkeys(("sacrebleu", "sacrebleu_lowercase", "chrf"), 100)
OF_NOTHING = {
  *("exact_match", "token_precision", "token_recall", "token_f1", "coco_rougeL", "accuracy"),
  *("label_f1", "macro_f1", "micro_f1", "vqa_accuracy", "vqa_med_accuracy", "vqa_med_bleu"),
  *("rms_f1", "table_cells"),
}
# They read answers by the choices, and score the first choice below 1 at times.
BY_CHOICES = {name for name, metric in METRICS.items() if metric.with_choices}
slowly = settings(max_examples=30, deadline=None)


def asked(name, predictions, references):
  """What the metric needs: ten annotators, or choices."""
  if name == "vqa_accuracy":
    references = [(texts * 10)[:10] for texts in references]
  choices = [(*texts, "another") for texts in references]
  return predictions, references, choices


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_in_range_and_of_every_sample(name):
  @slowly
  @given(PAIRS)
  def check(pairs):
    predictions, references = map(list, zip(*pairs, strict=True))
    predictions, references, choices = asked(name, predictions, references)
    metric = METRICS[name]
    scores = metric.samples(predictions, references, choices)
    top = TOP.get(name, 1) * (1 + 1e-9)
    assert scores.dtype == np.float64 and scores.shape == (len(pairs),)
    assert ((scores >= 0) & (scores <= top)).all()
    # Where no reference names a class there is no F1 of classes.
    if name not in ("macro_f1", "micro_f1"):
      assert 0 <= metric.corpus(predictions, references, choices) <= top
    if name != "cider":  # a sample's score is of this sample alone
      alone = metric.samples(predictions[:1], references[:1], choices[:1])
      assert alone[0] == scores[0]

  check()


@pytest.mark.parametrize("name", sorted(METRICS.keys() - BY_CHOICES))
def test_empty_answers(name):
  answers = asked(name, ["", "", "left lung", "x"], [["left lung"], [""], [""], ["y"]])
  scores = METRICS[name].samples(*answers)
  assert scores == pytest.approx([0, float(name in OF_NOTHING), 0, 0], abs=1e-8)


@pytest.mark.parametrize("name", sorted(METRICS.keys() - BY_CHOICES))
def test_very_long_answers(name):
  long = " ".join(f"w{i % 97}" for i in range(600))
  scores = METRICS[name].samples(*asked(name, [long, long], [[long], ["other"]]))
  assert scores[0] == pytest.approx(scores.max()) and scores[0] > 0 and scores[1] < 0.02


@pytest.mark.parametrize("name", METRICS)
def test_no_samples(name):
  assert METRICS[name].samples([], []).shape == (0,)
  with pytest.raises(UserError, match="nothing to score: 0 predictions"):
    METRICS[name].corpus([], [])


OF_SETS = sorted(name for name, metric in METRICS.items() if metric.of_corpus)


@pytest.mark.parametrize("name", ["exact_match", *OF_SETS])
def test_measured_numbers_are_the_corpus_with_an_interval(name):
  words = ["left lung", "right lung", "no", "the heart is large", "a very large left lung"]
  rng = np.random.default_rng(0)
  texts = [words[i] for i in rng.integers(5, size=40)]
  predictions = [t if rng.random() < 0.7 else words[rng.integers(5)] for t in texts]
  references, groups = [[text] for text in texts], [f"{i // 2}" for i in range(40)]
  metric = METRICS[name]
  measured = metric.measure(predictions, references, groups, seed=0)
  assert measured.value == pytest.approx(metric.corpus(predictions, references))
  assert measured.ci95[0] < measured.value < measured.ci95[1] and measured.n == 40
  if metric.of_corpus:  # of resampled samples it is the number of the set that they are
    rows = rng.integers(40, size=40)
    again = metric.corpus([predictions[i] for i in rows], [references[i] for i in rows])
    resampled = metric.of_corpus(predictions, references)(rows)
    # Classes that the whole set has and the resample has not are left out in both.
    assert resampled == pytest.approx(again)


def test_answers_are_matched_with_choices():
  choices = [["left lung", "heart"]] * 3
  predictions, references = ["B", "the left lungs", ""], [["heart"], ["left lung"], ["heart"]]
  similar = METRICS["choice_similarity"].samples(predictions, references, choices)
  letters = METRICS["choice_letter"].samples(predictions, references, choices)
  assert similar.tolist() == [0, 1, 0] and letters.tolist() == [1, 0, 0]
  with pytest.raises(UserError, match="3 of 3 questions have no choices"):
    METRICS["choice_letter"].samples(predictions, references)
  with pytest.raises(UserError, match="1 of 3 questions have no choices"):
    METRICS["choice_letter"].corpus(predictions, references, [*choices[:2], []])


@slowly
@given(ANSWER, ANSWER, st.booleans())
def test_rouge_is_the_librarys_at_the_best_reference(prediction, reference, stemmed):
  from rouge_score.rouge_scorer import RougeScorer

  for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
    want = RougeScorer([name], use_stemmer=stemmed).score(reference, prediction)[name]
    [alone] = rouge([prediction], [[reference]], name=name, stemmed=stemmed)
    [best] = rouge([prediction], [[reference, prediction]], name=name, stemmed=stemmed)
    assert alone.tolist() == list(want)
    assert best[2] >= alone[2]


@slowly
@given(PAIRS)
def test_sacrebleu_is_the_librarys(pairs):
  import sacrebleu

  predictions, references = map(list, zip(*pairs, strict=True))
  bleus = [sacrebleu.sentence_bleu(p, rs).score for p, rs in pairs]
  chrfs = [sacrebleu.sentence_chrf(p, rs).score for p, rs in pairs]
  firsts = [[rs[0] for rs in references]]
  single = [rs[:1] for rs in references]
  assert METRICS["sacrebleu"].samples(predictions, references).tolist() == bleus
  assert METRICS["chrf"].samples(predictions, references).tolist() == chrfs
  want = sacrebleu.corpus_bleu(predictions, firsts, force=True).score
  assert METRICS["sacrebleu"].corpus(predictions, single) == want
  lower = sacrebleu.corpus_bleu(predictions, firsts, force=True, lowercase=True).score
  assert METRICS["sacrebleu_lowercase"].corpus(predictions, single) == lower


@slowly
@given(PAIRS)
def test_bleu_is_nltks(pairs):
  from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu, sentence_bleu

  predictions, references = map(list, zip(*pairs, strict=True))
  hypotheses = [p.lower().split() for p in predictions]
  texts = [[r.lower().split() for r in rs] for rs in references]
  smooth = SmoothingFunction().method1
  for order in (1, 4):
    metric, weights = METRICS[f"bleu{order}"], [1 / order] * order
    want = [sentence_bleu(rs, h, weights, smooth) for rs, h in zip(texts, hypotheses, strict=True)]
    assert metric.samples(predictions, references).tolist() == want
  want = corpus_bleu(texts, hypotheses, [1.0])
  assert METRICS["bleu1"].corpus(predictions, references) == want


def test_meteor_stems_and_knows_no_synonyms():
  scores = METRICS["meteor"].samples(
    ["lungs", "lung", "disease"], [["lung"], ["heart"], ["illness"]]
  )
  assert scores.tolist() == [0.5, 0, 0]


def test_the_best_reference_counts():
  for name in ("exact_match", "token_f1", "rouge1", "bleu1", "coco_bleu1"):
    [score] = METRICS[name].samples(["left lung"], [["no", "left lung"]])
    assert score == pytest.approx(1), name


def test_signatures_name_the_library():
  assert METRICS["exact_match"].signature == "v1"
  assert METRICS["rouge1"].signature.startswith("v1, rouge-score 0.")


def test_metrics_with_files(tmp_path):
  lexicon = tmp_path / "terms.tsv"
  lexicon.write_text("left lung\tC1\nlung\tC2\nheart\tC3\n")
  made = make_metrics(["umls_recall", "exact_match", "umls_f1"], umls_lexicon=str(lexicon))
  assert list(made) == ["umls_recall", "exact_match", "umls_f1"]
  predictions, references = ["Left lung, heart."], [["the left lung", "heart and lung"]]
  assert made["umls_recall"].samples(predictions, references).tolist() == [1]
  assert made["umls_f1"].samples(predictions, references) == pytest.approx(2 / 3)
  assert made["umls_f1"].signature.startswith("v1, terms.tsv ")
  assert make_metrics(["bert_sim"], bert_model="some/roberta:17")["bert_sim"].signature == (
    "v1, roberta layer 17"
  )


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("exact_matsch", "unknown metric 'exact_matsch'; did you mean 'exact_match'"),
    ("umls_f1", "umls_lexicon=FILE"),
    ("bert_sim", "bert_model=FOLDER:LAYER, not ''"),
  ],
)
def test_what_cannot_be_made_says_so(name, message):
  with pytest.raises(UserError, match=message):
    make_metrics([name])


def test_what_cannot_be_scored_says_so():
  metric = METRICS["exact_match"]
  with pytest.raises(UserError, match="prediction 1 of 2 has no reference"):
    metric.samples(["a", "b"], [["a"], []])
  with pytest.raises(ValueError, match="2 predictions, 1 lists"):
    metric.samples(["a", "b"], [["a"]])
  with pytest.raises(ValueError, match="not a text"):
    metric.samples(["a"], ["a"])


def test_a_missing_library_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "nltk.translate.meteor_score", None)
  with pytest.raises(UserError, match=r"nltk's, .*pip install 'medflax\[metrics\]'"):
    METRICS["meteor"].samples(["a"], [["a"]])


def test_the_mean_is_of_the_corpus_unless_said_otherwise():
  metric = Metric(1, lambda predictions, references: np.array([0.0, 1.0]))
  assert metric.corpus(["", ""], [[""], [""]]) == 0.5
