import pytest


def row(qid, image, phrase="freeform", **fields):
  return {
    "qid": qid,
    "phrase_type": phrase,
    "image_name": image,
    "image_organ": "HEAD",
    "question": f"Question {qid}?",
    "question_type": "PRES",
    "answer": "Yes",
    "answer_type": "CLOSED",
    **fields,
  }


@pytest.fixture
def official(write, picture):
  picture("VQA_RAD Image Folder/synpic1.jpg", 10)
  picture("VQA_RAD Image Folder/synpic2.jpg", 20)
  picture("VQA_RAD Image Folder/synpic3.jpg", 30, broken=True)
  rows = [
    row("0", "synpic1.jpg"),
    row(1, "synpic2.jpg", answer=3, answer_type="OPEN ", question_type="COUNT"),
    row(2, "synpic1.jpg", "test_freeform"),
    row(3, "synpic3.jpg"),
    row(4, "synpic1.jpg", answer_type="maybe"),
    row(5, "synpic1.jpg", question=" "),
    row(6, "../secret.jpg"),
    row(0, "synpic2.jpg"),
  ]
  write("VQA_RAD Dataset Public.json", rows)


def test_every_field_is_kept(official, build, shades):
  built = build("vqa_rad")
  first, second = built.samples["train"]
  assert (first.id, first.question, first.answer) == ("train-0", "Question 0?", "Yes")
  assert (first.task, first.group, first.choices) == ("closed", "synpic1.jpg", ())
  assert first.meta == {
    "question_type": "PRES",
    "organ": "HEAD",
    "phrase_type": "freeform",
    "answer_type": "closed",
  }
  assert (first.source.dataset, first.source.split) == ("vqa_rad", "train")
  assert (second.answer, second.task, second.meta["question_type"]) == ("3", "open", "COUNT")
  assert shades(first) == [10]
  assert shades(second) == [20]
  [test] = built.samples["test"]
  assert (test.id, test.group) == ("test-2", "synpic1.jpg")
  assert built.data.tasks == ("vqa", "open", "closed")
  assert built.data.samples("vqa", "train").topics == ["PRES", "COUNT"]
  assert built.info["shared_groups"] == {"train/test": 1}


def test_bad_rows_are_told(official, build):
  reasons = build("vqa_rad").reasons
  assert len(reasons) == 5
  assert any("synpic3.jpg is broken" in reason for reason in reasons)
  assert "has 'answer_type' 'maybe', neither open nor closed" in reasons
  assert "has no usable 'question'" in reasons
  assert any("leads out of the data folder" in reason for reason in reasons)
  assert "id 'train-0' is that of an earlier row" in reasons


def test_the_disjoint_split_shares_no_image(write, picture, build):
  images = [f"synpic{i}.jpg" for i in range(40)]
  for image in images:
    picture(f"VQA_RAD Image Folder/{image}", 5)
  rows = [row(2 * i + j, image) for i, image in enumerate(images) for j in range(2)]
  write("VQA_RAD Dataset Public.json", rows)
  built = build("vqa_rad_disjoint")
  assert built.info["shared_groups"] == {}
  assert 0 < len(built.samples["test"]) < 20
  assert len(built.samples["train"]) + len(built.samples["test"]) == 80


def test_the_split_of_mevf(write, picture, build, shades):
  picture("images/synpic1.jpg", 40)
  write("trainset.json", [row(1, "synpic1.jpg")])
  write("testset.json", [row(1, "synpic1.jpg", "freeform")])
  built = build("vqa_rad_mevf")
  assert [sample.id for sample in built.samples["train"]] == ["train-1"]
  assert [sample.id for sample in built.samples["test"]] == ["test-1"]
  assert shades(built.samples["test"][0]) == [40]
