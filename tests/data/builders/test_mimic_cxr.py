import gzip

import pytest

from medflax.utils import UserError

REPORT = """                                 FINAL REPORT
 INDICATION:  ___F with cough

 FINDINGS:

 The lungs are clear.
 No effusion.

 IMPRESSION:  No acute process.
"""


def test_studies_reports_and_labels(write, picture, build, shades):
  folder = "files/p10/p10000032"
  picture(f"{folder}/s1/aa.jpg", 10)
  picture(f"{folder}/s1/bb.jpg", 20)
  picture(f"{folder}/s1/cc.jpg", 30)
  picture(f"{folder}/s2/dd.jpg", 40, broken=True)
  picture("files/p11/p11/s3/ee.jpg", 50)
  write(f"{folder}/s1.txt", REPORT)
  write(f"{folder}/s2.txt", REPORT)
  rows = ["aa,1,10000032,train", "bb,1,10000032,train", "cc,1,10000032,train"]
  rows += ["dd,2,10000032,train", "ee,3,11,validate", "ff,4,11,test"]
  split = "dicom_id,study_id,subject_id,split\n" + "\n".join(rows) + "\n"
  write("mimic-cxr-2.0.0-split.csv.gz", gzip.compress(split.encode()))
  write(
    "mimic-cxr-2.0.0-metadata.csv",
    "dicom_id,ViewPosition\naa,PA\nbb,LATERAL\ncc,AP\ndd,AP\nee,AP\nff,LATERAL\n",
  )
  write(
    "mimic-cxr-2.0.0-chexpert.csv",
    "subject_id,study_id,Edema,Pleural Effusion,Pneumonia\n10000032,1,1.0,0.0,-1.0\n11,3,,0.0,\n",
  )
  built = build("mimic_cxr")
  findings, impression, edema, effusion = built.samples["train"]
  assert (findings.id, findings.answer) == ("s1-findings", "The lungs are clear. No effusion.")
  assert (findings.task, findings.group) == ("findings", "p10000032")
  assert shades(findings) == [10, 30]
  assert findings.meta == {"indication": "___F with cough", "answer_type": "open"}
  assert (impression.task, impression.answer) == ("impression", "No acute process.")
  assert (edema.id, edema.question) == ("s1-edema", "Does this examination show edema?")
  assert (edema.answer, edema.choices, edema.task) == ("yes", ("yes", "no"), "label")
  assert edema.meta == {"label": "Edema", "answer_type": "closed"}
  assert (effusion.answer, shades(effusion)) == ("no", [10])
  assert [sample.id for sample in built.samples["val"]] == ["s3-pleural_effusion"]
  assert built.reasons == [*[f"{folder}/s2/dd.jpg is broken"] * 2, "study s4 has no frontal view"]
  assert built.data.samples("vqa", "train").topics[2:] == ["label edema", "label pleural effusion"]


def test_a_table_without_its_key_is_told(write, build):
  write("mimic-cxr-2.0.0-split.csv", "dicom,study_id,subject_id,split\naa,1,10000032,train\n")
  with pytest.raises(UserError, match=r"split\.csv has no column 'dicom_id'"):
    build("mimic_cxr")
