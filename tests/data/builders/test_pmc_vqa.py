import pytest

from medflax.utils import UserError

V1 = "Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,Answer_label\n"
V2 = ",Figure_path,Caption,Question,Choice A,Choice B,Choice C,Choice D,Answer,split\n"


def test_the_first_version(write, picture, build, shades):
  picture("images/PMC1_Fig1_2.jpg", 10)
  picture("images/PMC2_Fig1_1.jpg", 20, broken=True)
  write(
    "train.csv",
    V1
    + 'PMC1_Fig1_2.jpg,What is it?,left lung, A: right lung, B:left lung,"C:liver, spleen",D: x,B\n'
    + "PMC2_Fig1_1.jpg,What is it?,left,A:1,B:2,C:3,D:4,A\n"
    + "PMC1_Fig1_2.jpg,What is it?,left,A:1,B:2,C:3,D:4,E\n"
    + "PMC1_Fig1_2.jpg,What is it?,left,A:1,B:2,C:3,D: ,A\n"
    + "PMC1_Fig1_2.jpg,What is it?\n",
  )
  write("test.csv", V1 + "PMC1_Fig1_2.jpg,Which?,1,A:1,B:2,C:3,D:4,A\n")
  write("test_clean.csv", V1 + "PMC1_Fig1_2.jpg,Which?,4,A:1,B:2,C:3,D:4,D\n")
  built = build("pmc_vqa_v1")
  [sample] = built.samples["train"]
  assert (sample.id, sample.question, sample.answer) == ("train-1", "What is it?", "left lung")
  assert sample.choices == ("right lung", "left lung", "liver, spleen", "x")
  assert (sample.task, sample.group, shades(sample)) == ("closed", "PMC1", [10])
  assert sample.meta == {"letter": "B", "answer_type": "closed"}
  assert [s.answer for s in built.samples["test_initial"]] == ["1"]
  assert [s.answer for s in built.samples["test"]] == ["4"]
  assert built.reasons == [
    "images/PMC2_Fig1_1.jpg is broken",
    "has the answer 'E', which is none of the letters ABCD",
    "has an empty 'Choice D'",
    "has 2 columns instead of 8",
  ]
  assert [item["place"] for item in built.rejected] == [f"train.csv row {n}" for n in range(2, 6)]


def test_the_second_version_has_letters_for_answers(write, picture, build, shades):
  picture("figures/PMC3_F1.jpg", 30)
  write("train_2.csv", V2 + "0,PMC3_F1.jpg,A caption,Which?, A: 1, B: 2, C: 3, D: 4,C,train\n")
  write("test_2.csv", V2 + "0,PMC3_F9.jpg,A caption,Which?, A: 1, B: 2, C: 3, D: 4,C,test\n")
  built = build("pmc_vqa_v2")
  [sample] = built.samples["train"]
  assert (sample.answer, sample.meta["letter"], sample.group) == ("3", "C", "PMC3")
  assert shades(sample) == [30]
  assert "figures/PMC3_F9.jpg' does not exist" in built.reasons[0]


def test_an_archive_that_is_still_packed_is_pointed_at(write, picture, build):
  picture("other.jpg", 1)
  write("images.zip", b"PK")
  write("test_clean.csv", V1 + "PMC1_Fig1_2.jpg,Which?,4,A:1,B:2,C:3,D:4,D\n" * 2)
  with pytest.raises(UserError, match=r"unpack images\.zip where it is"):
    build("pmc_vqa_v1")
