import json


def test_problems(write, picture, build, shades):
  picture("a.png", 10)
  picture("b.png", 20)
  picture("c.png", 20, broken=True)
  problem = {
    "image": "a.png",
    "vignette": "A man of 50 years.",
    "labs_table": "Na 140",
    "question": "What is the diagnosis?",
    "answer": "Gout.",
    "specialty": "Rheumatology",
  }
  lines = [
    problem | {"shot": True, "id": "p1", "case": "c1"},
    problem | {"images": ["b.png", "a.png"], "labs_table": None, "vignette": ""},
    problem | {"image": "c.png"},
    problem | {"image": ""},
  ]
  write("problems.jsonl", "\n".join(map(json.dumps, lines)))
  built = build("usmle")
  [shot] = built.samples["train"]
  assert (shot.id, shot.group, shot.answer) == ("p1", "c1", "Gout.")
  assert shot.question == "A man of 50 years.\nNa 140\nWhat is the diagnosis?"
  assert shot.meta == {"specialty": "Rheumatology", "answer_type": "open"}
  assert built.data.samples("vqa", "train").topics == ["Rheumatology"]
  [test] = built.samples["test"]
  assert (test.id, test.question) == ("problem-2", "What is the diagnosis?")
  assert shades(test) == [20, 10]
  assert sorted(built.reasons) == [
    "c.png is broken",
    "has an empty 'image'",
  ]
  episode = built.data.episodes("vqa", "test", 1)[0]
  assert [sample.id for sample in episode.support] == ["p1"]
