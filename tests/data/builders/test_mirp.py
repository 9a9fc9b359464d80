def entry(name, *answers, **fields):
  pairs = [
    {
      "question": "Is the aorta above the spleen?",
      "answer": answer,
      "object1_name": "aorta",
      "object2_name": "spleen",
    }
    for answer in answers
  ]
  return {"filename": name, "question_answer": pairs, **fields}


def test_questions_of_two_research_questions(write, picture, build, shades):
  picture("RQ1/images/amos_1.nii_slice-20.png", 10)
  picture("RQ2/image_dots/btcv_img2_slice85.png", 20)
  picture("RQ2/image_dots/btcv_img3_slice85.png", 30, broken=True)
  first = entry("amos_1.nii_slice-20.png", 1, 0, base_name="amos_1.nii", rotate_flip_short="A3")
  write("RQ1/qa.json", [first])
  write(
    "RQ2/qa_dots.json",
    [
      entry("btcv_img2_slice85.png", 0),
      entry("btcv_img3_slice85.png", 0),
      entry("btcv_img2_slice85.png", 2),
    ],
  )
  built = build("mirp")
  yes, no, dots = built.samples["test"]
  assert (yes.id, yes.answer, no.answer) == ("rq1-amos_1.nii_slice-20-0", "yes", "no")
  assert (yes.task, yes.group, shades(yes)) == ("rq1", "amos_1.nii", [10])
  assert (yes.question, yes.choices) == ("Is the aorta above the spleen?", ("no", "yes"))
  assert yes.meta == {
    "orientation": "A3",
    "structures": ["aorta", "spleen"],
    "answer_type": "closed",
  }
  assert (dots.task, dots.group, shades(dots)) == ("rq2_dots", "btcv_img2", [20])
  assert sorted(built.reasons) == [
    "RQ2/image_dots/btcv_img3_slice85.png is broken",
    "has a question without an answer of 0 or 1 about btcv_img2_slice85.png",
  ]
