import pickle

import pytest

from medflax.utils import UserError


def row(image, question, answer):
  return {"image": image, "question": question, "answer": answer}


def test_every_field_is_kept_and_bad_rows_are_told(write, picture, build, shades):
  picture("images/train/train_0001.jpg", 10)
  picture("images/test/test_0001.jpg", 20)
  picture("images/train/train_0002.jpg", 30, broken=True)
  train = [
    row("train_0001", "what is shown?", "a gland"),
    row("train_0001", "is it a gland?", "Yes"),
    row("train_0002", "what is shown?", "a cell"),
    {"image": "train_0001", "question": "where?"},
  ]
  write("qas/train/train_qa.pkl", pickle.dumps(train))
  write("qas/test/test_qa.pkl", pickle.dumps([row("test_0001", "is it?", "no")]))
  built = build("path_vqa")
  first, second = built.samples["train"]
  assert (first.id, first.question, first.answer) == ("train-1", "what is shown?", "a gland")
  assert (first.task, first.group, shades(first)) == ("open", "train_0001", [10])
  assert first.meta == {"answer_type": "open"}
  assert (second.answer, second.task, second.meta) == ("Yes", "closed", {"answer_type": "closed"})
  [test] = built.samples["test"]
  assert (test.id, test.group, shades(test)) == ("test-1", "test_0001", [20])
  missing, broken = sorted(built.reasons)
  assert missing == "has no 'answer'"
  assert "images/train/train_0002.jpg is broken" in broken
  assert built.info["absent"] == ["qas/val/val_qa.pkl"]


class Harmful:
  def __reduce__(self):
    return print, ("this must not run",)


@pytest.mark.parametrize("content", [pickle.dumps([Harmful()]), b"\x80\x05garbage", b""])
def test_a_pickle_that_is_more_than_data_is_refused(write, build, content, capsys):
  write("qas/train/train_qa.pkl", content)
  with pytest.raises(UserError, match=r"train_qa\.pkl is truncated or broken"):
    build("path_vqa")
  assert "must not run" not in capsys.readouterr().out
