import json

import pytest


def description(name, case, caption="A mass.", **fields):
  inner = {"Caption": caption, "Modality": "CT - noncontrast", "Plane": "Axial"}
  return {
    "Type": "CT",
    "U_id": case,
    "image": name,
    "Description": inner,
    "Location Category": "Thorax",
    **fields,
  }


def case(name, **told):
  findings = {"History": "Cough.", "Findings": "•  A mass.", "Case Diagnosis": "Cancer"}
  return {"U_id": name, "Case": findings | {"Differential Diagnosis": "N/A"} | told}


@pytest.fixture
def layout(write, picture):
  picture("images/MPX1_a.png", 10)
  picture("images/MPX1_b.png", 20)
  picture("images/MPX2_a.png", 30)
  picture("images/MPX3_a.png", 40, broken=True)
  descriptions = [
    description("MPX1_a", "MPX1"),
    description("MPX1_b", "MPX1", "Replace this - DESCRIPTION OF THE IMAGE OR FINDINGS."),
    description("MPX2_a", "MPX2", "A cyst."),
    description("MPX3_a", "MPX3"),
    {"U_id": "MPX1", "image": "MPX1_a"},
  ]
  write("Descriptions.json", descriptions)
  write("Case_topic.json", [case("MPX1"), case("MPX2", History="N/A", Findings=None), case("MPX3")])
  for split, name in (("train", "MPX1"), ("dev", "MPX2"), ("test", "MPX3")):
    write(f"splitted_dataset/descriptions_{split}.jsonl", json.dumps({"U_id": name}))
  question = {
    "qid": 7,
    "image_name": "MPX1_a.png",
    "case_id": "MPX1",
    "image_organ": "Thorax",
    "question": "is this an mri?",
    "answer": "no",
    "answer_type": "CLOSED",
    "question_type": "MODALITY",
  }
  write("vqa_templated/train.json", [question])


def test_templates_captions_and_cases(layout, build, shades):
  built = build("medpix")
  template, caption, findings, diagnosis = built.samples["train"]
  assert (template.id, template.task, template.answer) == ("template-7", "modality", "no")
  assert template.meta == {"organ": "Thorax", "answer_type": "closed"}
  assert (template.group, shades(template)) == ("MPX1", [10])
  assert (caption.id, caption.task, caption.answer) == ("caption-MPX1_a", "caption", "A mass.")
  assert caption.meta == {
    "modality": "CT - noncontrast",
    "plane": "Axial",
    "location": "Thorax",
    "answer_type": "open",
  }
  assert (findings.id, findings.answer) == ("findings-MPX1", "A mass.")
  assert findings.question == "Cough. What are the findings?"
  assert (diagnosis.task, diagnosis.answer) == ("diagnosis", "Cancer")
  assert shades(findings) == shades(diagnosis) == [10, 20]
  assert [(s.id, s.question) for s in built.samples["val"][1:]] == [
    ("diagnosis-MPX2", "What is the diagnosis?")
  ]
  assert built.data.media_per_sample["image"] == 2
  assert built.data.tasks == ("vqa", "modality", "caption", "findings", "diagnosis")


def test_a_broken_image_rejects_all_that_needs_it(layout, build):
  built = build("medpix")
  assert "test" not in built.samples
  assert "MPX1_b has the placeholder for a caption, no caption" in built.reasons
  assert sorted(item["id"] for item in built.rejected) == [
    "",
    "",
    "caption-MPX3_a",
    "diagnosis-MPX3",
    "findings-MPX3",
  ]
  assert "has no object 'Description'" in built.reasons
  assert sum("images/MPX3_a.png is broken" in reason for reason in built.reasons) == 3
