def test_2019(write, picture, build, shades):
  train = "ImageClef-2019-VQA-Med-Training"
  picture(f"{train}/Train_images/synpic1.jpg", 10)
  picture(f"{train}/Train_images/synpic2.jpg", 20, broken=True)
  picture("VQAMed2019Test/VQAMed2019_Test_Images/synpic9.jpg", 90)
  write(
    f"{train}/All_QA_Pairs_train.txt",
    "synpic1|is this a ct?|no\nsynpic1|what is abnormal?|a mass\nsynpic2|what?|x\nsynpic3|what?|x\n"
    "no line\n",
  )
  write(f"{train}/QAPairsByCategory/C1_Modality_train.txt", "synpic1|is this a ct?|no\n")
  write(
    "VQAMed2019Test/VQAMed2019_Test_Questions_w_Ref_Answers.txt",
    "synpic9|plane|which plane?|axial#transverse (plane)\n",
  )
  built = build("vqa_med_2019")
  first, second = built.samples["train"]
  assert (first.id, first.question, first.answer) == (
    "train-All_QA_Pairs_train-1",
    "is this a ct?",
    "no",
  )
  assert (first.task, first.group, shades(first)) == ("modality", "synpic1", [10])
  assert first.meta == {"answers": ["no"], "answer_type": "closed"}
  assert (second.task, second.answer, second.meta["answer_type"]) == ("vqa", "a mass", "open")
  [test] = built.samples["test"]
  assert (test.task, test.answer, shades(test)) == ("plane", "axial", [90])
  assert test.meta["answers"] == ["axial", "transverse (plane)"]
  assert built.data.tasks == ("vqa", "modality", "plane")
  broken, missing, short = sorted(built.reasons, key=len, reverse=True)
  assert "synpic2.jpg is broken" in missing + broken
  assert "'synpic3.jpg' does not exist" in missing + broken
  assert short == "has 1 columns instead of 3"
  assert built.info["absent"] == ["**/All_QA_Pairs_val.txt"]


def test_2020_and_2021_share_their_training_files(write, picture, build, shades):
  folder = "VQAMed2020-VQAnswering-TrainingSet"
  for name, value in (("a", 10), ("b", 20), ("c", 30), ("d", 40), ("e", 50)):
    picture(f"images/{name}.jpg", value)
  write(f"{folder}/VQAnswering_2020_Train_QA_pairs.txt", "a|what?|cyst\n")
  write("val/VQAnswering_2020_Val_QA_Pairs.txt", "b|what?|tumour\n")
  write("test/VQA-Med-2020-Test-Questions.txt", "c|what is wrong?\nx|what is wrong?\n")
  write("test/VQA-Med-2020-Test-Answers.txt", "c|stroke|ischaemic stroke\n")
  write("new/VQA-Med-2021-VQAnswering-Task1-New-ValidationSet.txt", "d|what?|fracture\n")
  write("new/Task1-VQA-2021-TestSet-Questions.txt", "e|is it normal?\n")
  write("new/Task1-VQA-2021-TestSet-ReferenceAnswers.txt", "e|yes\n")
  built = build("vqa_med_2020")
  assert {s: [x.answer for x in xs] for s, xs in built.samples.items()} == {
    "train": ["cyst"],
    "val": ["tumour"],
    "test": ["stroke"],
  }
  assert built.samples["test"][0].meta["answers"] == ["stroke", "ischaemic stroke"]
  assert built.samples["test"][0].task == "abnormality"
  assert built.reasons == ["has no 'answer'"]
  built = build("vqa_med_2021")
  assert {s: [x.answer for x in xs] for s, xs in built.samples.items()} == {
    "train": ["cyst", "tumour"],
    "val": ["fracture"],
    "test": ["yes"],
  }
  assert shades(built.samples["test"][0]) == [50]
  assert built.reasons == []
