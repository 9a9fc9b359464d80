"""The data sets without media: MedQA, PubMedQA, MEDIQA, MedDialog."""

import json

import pytest

from medflax.utils import UserError


def test_med_qa(write, build):
  row = {
    "question": "Which drug?",
    "answer": "Aspirin",
    "options": {"A": "Aspirin", "B": "Heparin", "C": "x", "D": "y", "E": "z"},
    "meta_info": "step1",
    "answer_idx": "A",
  }
  lines = [row, row | {"answer_idx": "F"}, row | {"options": None}]
  write("data_clean/questions/US/train.jsonl", "\n".join(map(json.dumps, lines)))
  write("data_clean/questions/US/dev.jsonl", json.dumps(row))
  built = build("med_qa")
  [sample] = built.samples["train"]
  assert (sample.id, sample.question, sample.answer) == ("train-1", "Which drug?", "Aspirin")
  assert sample.choices == ("Aspirin", "Heparin", "x", "y", "z")
  assert (sample.media, sample.task, sample.group) == ((), "question", "train-1")
  assert sample.meta == {"letter": "A", "step": "step1", "answer_type": "closed"}
  assert len(built.samples["val"]) == 1
  assert built.reasons == ["has no 'F'", "has no object 'options'"]
  assert built.info["absent"] == ["data_clean/questions/US/test.jsonl"]


def test_pubmed_qa(write, build):
  row = {
    "QUESTION": "Does it help?",
    "CONTEXTS": ["We asked.", "We found."],
    "LONG_ANSWER": "It helps.",
    "final_decision": "maybe",
  }
  rows = {"1": row, "2": row | {"final_decision": "perhaps"}, "3": row, "4": row | {"CONTEXTS": []}}
  write("data/ori_pqal.json", rows | {"5": "text"})
  with pytest.raises(UserError, match=r"test_ground_truth\.json not found"):
    build("pubmed_qa")
  write("data/test_ground_truth.json", {"3": "maybe"})
  built = build("pubmed_qa")
  [sample] = built.samples["train"]
  assert (sample.id, sample.question) == ("1", "We asked. We found.\nDoes it help?")
  assert (sample.answer, sample.choices) == ("maybe", ("yes", "no", "maybe"))
  assert (sample.task, sample.group) == ("abstract", "1")
  assert sample.meta == {"long_answer": "It helps.", "answer_type": "closed"}
  assert [sample.id for sample in built.samples["test"]] == ["3"]
  assert built.reasons == [
    "answer 'perhaps' is none of its choices",
    "has no abstract",
    "is not a JSON object",
  ]


def test_mediqa_qa(write, build):
  answers = (
    '<Answer AID="1" ReferenceRank="2"><AnswerText>Second.</AnswerText></Answer>'
    '<Answer AID="2" ReferenceRank="1"><AnswerText>The\n best.</AnswerText></Answer>'
  )
  write(
    "MEDIQA_Task3_QA/MEDIQA2019-Task3-QA-TrainingSet1-LiveQAMed.xml",
    f'<NLM><Question QID="7"><QuestionText>What helps?</QuestionText><AnswerList>{answers}'
    '</AnswerList></Question><Question QID="8"><QuestionText>What else?</QuestionText>'
    "</Question></NLM>",
  )
  built = build("mediqa_qa")
  [sample] = built.samples["train"]
  assert sample.id == "MEDIQA2019-Task3-QA-TrainingSet1-LiveQAMed-7"
  assert (sample.question, sample.answer, sample.task) == ("What helps?", "The best.", "consumer")
  assert built.reasons == ["has no answer of rank 1"]


def test_mediqa_rqe(write, build):
  pairs = "".join(
    f'<pair pid="{i}" value="{value}"><chq>Long {i}?</chq><faq>Short?</faq></pair>'
    for i, value in enumerate(["true", "false", "unknown"])
  )
  write("RQE_Train_8588_AMIA2016.xml", "<pairs><pair")
  with pytest.raises(UserError, match="truncated or broken"):
    build("mediqa_rqe")
  write("RQE_Train_8588_AMIA2016.xml", f"<pairs>{pairs}</pairs>")
  built = build("mediqa_rqe")
  yes, no = built.samples["train"]
  assert (yes.id, yes.answer, no.answer) == ("train-0", "yes", "no")
  assert yes.question == "Long 0?\nWould an answer to this one answer it, too? Short?"
  assert (yes.choices, yes.group) == (("yes", "no"), "Long 0?")
  assert built.reasons == ["has 'value' 'unknown', neither true nor false"]


def test_med_dialog(write, build):
  said = ["patient: I cough.", "doctor: Since when?", "patient: A week.", "doctor: Take rest."]
  rows = [{"description": "Cough", "utterances": said}, {"utterances": ["patient: Hello?"]}]
  write("english-train.json", rows)
  built = build("med_dialog")
  first, second = built.samples["train"]
  assert (first.id, first.question, first.answer) == ("train-1-1", "I cough.", "Since when?")
  assert second.question == "I cough.\ndoctor: Since when?\npatient: A week."
  assert (second.answer, second.group, second.task) == ("Take rest.", "train-1", "dialogue")
  assert second.meta == {"description": "Cough", "answer_type": "open"}
  assert built.reasons == ["has no answer of a doctor"]
