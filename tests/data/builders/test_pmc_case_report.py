import io

import pyarrow
import pyarrow.parquet
import pytest

from medflax.data.builders.pmc_case_report import shortened

ROWS = [
  {
    "PMC_id": "PMC1",
    "img_ref": "['F1', 'F2']",
    "context": "A woman came. She was ill.",
    "question": "Q: What is seen?",
    "answer": "A: A mass.",
  },
  {
    "PMC_id": "PMC2",
    "img_ref": "['F1']",
    "context": "",
    "question": "Q: What?",
    "answer": "A: No.",
  },
  {"PMC_id": "PMC1", "img_ref": "F1", "context": "", "question": "Q: What?", "answer": "A: No."},
  {"PMC_id": "PMC1", "img_ref": "['F1']", "context": "", "question": "Q: ", "answer": "A: No."},
]


def as_parquet():
  buffer = io.BytesIO()
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), buffer)
  return buffer.getvalue()


def as_csv():
  lines = ['"' + '","'.join(row.values()) + '"' for row in ROWS]
  return ",".join(ROWS[0]) + "\n" + "\n".join(lines)


@pytest.mark.parametrize(
  ("name", "content"), [("train-0.parquet", as_parquet), ("filtered_train.csv", as_csv)]
)
def test_both_formats(write, picture, build, shades, name, content):
  picture("figures/PMC1_F1.jpg", 10)
  picture("figures/PMC1_F2.jpg", 20)
  picture("figures/PMC2_F1.jpg", 30, broken=True)
  write(name, content())
  built = build("pmc_case_report")
  [sample] = built.samples["train"]
  assert sample.question == "A woman came. She was ill.\nWhat is seen?"
  assert (sample.answer, sample.task, sample.group) == ("A mass.", "case", "PMC1")
  assert shades(sample) == [10, 20]
  assert sample.id == f"train-{name}-1"
  assert sorted(built.reasons) == [
    "figures/PMC2_F1.jpg is broken",
    "has 'img_ref' that is no list",
    "has no question",
  ]


def test_long_contexts_are_shortened():
  assert shortened("One. Two. Three.") == "One. Two. Three."
  assert shortened("1. 2. 3. 4. 5. 6. 7.") == "1. 4. 5. 6. 7."
