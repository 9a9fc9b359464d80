import json


def test_pmc_oa(write, picture, build, shades):
  articles = [f"PMC{i}" for i in range(30)]
  lines = [{"image": f"{name}_Fig1_1.jpg", "caption": f"Figure of {name}."} for name in articles]
  for i, name in enumerate(articles):
    picture(f"images/{name}_Fig1_1.jpg", i, broken=i == 3)
  write("pmc_oa.jsonl", "\n".join([*map(json.dumps, lines), "{broken", '{"image": "x.jpg"}']))
  built = build("pmc_oa")
  found = {sample.id: sample for samples in built.samples.values() for sample in samples}
  assert len(found) == 29
  sample = found["PMC7_Fig1_1"]
  assert (sample.answer, sample.task, sample.group) == ("Figure of PMC7.", "caption", "PMC7")
  assert shades(sample) == [7]
  assert set(built.samples) == {"train", "val", "test"}
  assert sorted(built.reasons) == [
    "has no 'caption'",
    "images/PMC3_Fig1_1.jpg is broken",
    "is not one JSON object",
  ]


def test_the_beta_names_its_articles(write, picture, build):
  picture("images/abc.jpg", 1)
  line = {"image": "abc.jpg", "caption": "A figure.", "pmcid": "PMC5", "url_name": "x"}
  write("pmc_oa_beta.jsonl", json.dumps(line))
  [samples] = build("pmc_oa_beta").samples.values()
  assert [(s.id, s.group) for s in samples] == [("abc", "PMC5")]
