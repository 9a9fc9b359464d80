def row(qid, language="en", **fields):
  return {
    "img_id": 1,
    "img_name": "xmlab1/source.jpg",
    "question": f"Question {qid}?",
    "answer": "MRI",
    "q_lang": language,
    "location": "Abdomen",
    "modality": "MRI",
    "answer_type": "OPEN",
    "base_type": "vqa",
    "content_type": "Modality",
    "triple": ["vhead", "_", "_"],
    "qid": qid,
    **fields,
  }


def test_the_languages_are_apart_and_every_field_is_kept(write, picture, build, shades):
  picture("imgs/xmlab1/source.jpg", 10)
  picture("imgs/xmlab2/source.jpg", 20, broken=True)
  write("train.json", [row(0), row(1, "zh", answer="是", answer_type="CLOSED")])
  write("validate.json", [row(2, img_name="xmlab2/source.jpg"), row(3)])
  write("test.json", [row(4, "zh"), row(5), "no row"])
  english = build("slake_en")
  [sample] = english.samples["train"]
  assert (sample.id, sample.question, sample.answer) == ("0", "Question 0?", "MRI")
  assert (sample.task, sample.group, shades(sample)) == ("open", "xmlab1", [10])
  assert sample.meta == {
    "language": "en",
    "content_type": "Modality",
    "base_type": "vqa",
    "modality": "MRI",
    "location": "Abdomen",
    "answer_type": "open",
  }
  assert {split: len(samples) for split, samples in english.samples.items()} == {
    "train": 1,
    "val": 1,
    "test": 1,
  }
  assert english.data.samples("vqa", "train").topics == ["Modality"]
  broken, not_an_object = english.rejected
  assert (broken["id"], broken["split"]) == ("2", "val")
  assert english.reasons[0] == "imgs/xmlab2/source.jpg is broken"
  assert not_an_object == {
    "place": "test.json row 3",
    "id": "",
    "split": "test",
    "reason": "is not a JSON object",
  }
  chinese = build("slake_zh")
  assert [(s.id, s.answer, s.task) for s in chinese.samples["train"]] == [("1", "是", "closed")]
  assert chinese.info["published"] == {"train": 4916, "val": 1046, "test": 1033}
