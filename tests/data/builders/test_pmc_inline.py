import pytest

from medflax.data.documents import Media, Text
from medflax.utils import UserError


def test_articles_become_documents(write, picture, build, shades):
  for name, value in (("PMC1_F1", 10), ("PMC1_F2", 20), ("PMC2_F1", 30)):
    picture(f"figures/{name}.jpg", value, broken=name == "PMC2_F1")
  sentences = [
    {"text": "Before.", "img_ref": []},
    {"text": "See Figure 1.", "img_ref": ["F1"]},
    {"text": "A stray <image> mark, and Figure 2.", "img_ref": ["F2"]},
  ]
  write("papers/PMC1.json", sentences)
  write("papers/PMC2.json", [{"text": "Broken.", "img_ref": ["F1"]}])
  write("papers/PMC3.json", ["no object"])
  write("paper_train.csv", "PMC_path\n" + "".join(f"papers/PMC{i}.json\n" for i in (1, 2, 3, 4)))
  built = build("pmc_inline")
  [sample] = built.samples["train"]
  text = "Before. <image>See Figure 1. <image>A stray mark, and Figure 2."
  assert (sample.id, sample.answer, sample.question) == ("PMC1-0", text, "")
  assert (sample.task, sample.group, shades(sample)) == ("article", "PMC1", [10, 20])
  document = built.data.documents("article", "train")[0]
  first, second = sample.media
  assert [type(segment) for segment in document.segments] == [Text, Media, Text, Media, Text]
  assert document.segments[0] == Text("Before. ", loss=True)
  assert (document.segments[1].array == first.array).all()
  assert document.segments[2] == Text("See Figure 1. ", loss=True)
  assert (document.segments[3].array == second.array).all()
  assert (document.id, document.source.split) == ("PMC1-0", "train")
  with pytest.raises(UserError, match="holds documents, not questions"):
    built.data.episodes("vqa", "train", 0)
  assert sorted(reason.split(";")[0] for reason in built.reasons) == [
    "'papers/PMC4.json' does not exist",
    "article PMC3 holds a sentence that is no object",
    "figures/PMC2_F1.jpg is broken",
  ]
