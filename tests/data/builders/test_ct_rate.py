import nibabel
import numpy as np

REPORTS = "VolumeName,ClinicalInformation_EN,Technique_EN,Findings_EN,Impressions_EN\n"


def test_reports_and_labels(source, write, build):
  for name in ("train/train_1/train_1_a/train_1_a_1", "valid/valid_2/valid_2_b/valid_2_b_1"):
    path = source / "dataset" / f"{name}.nii.gz"
    path.parent.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), None), path)
  folder = "dataset/radiology_text_reports"
  row = "train_1_a_1.nii.gz,Cough.,Non-contrast.,The lungs are clear.,Normal.\n"
  write(
    f"{folder}/train_reports.csv",
    REPORTS + row + row.replace("_1_a_1", "_9_a_1") + row.replace("train_1_a_1.nii.gz", ""),
  )
  write(f"{folder}/validation_reports.csv", REPORTS + "valid_2_b_1.nii.gz,,,Nodule.,\n")
  labels = "dataset/multi_abnormality_labels"
  write(
    f"{labels}/train_predicted_labels.csv",
    "VolumeName,Emphysema,Lung nodule\ntrain_1_a_1.nii.gz,0,1\n",
  )
  built = build("ct_rate")
  findings, impression, emphysema, nodule = built.samples["train"]
  assert (findings.id, findings.answer) == ("train_1_a_1-findings", "The lungs are clear.")
  assert (findings.task, findings.group) == ("findings", "train_1")
  assert findings.meta == {"indication": "Cough.", "answer_type": "open"}
  assert findings.media[0].array.shape == (4, 8, 8, 1)
  assert (impression.task, impression.answer) == ("impression", "Normal.")
  assert (emphysema.id, emphysema.answer) == ("train_1_a_1-emphysema", "no")
  assert (nodule.question, nodule.answer) == ("Does this examination show lung nodule?", "yes")
  [val] = built.samples["val"]
  assert (val.group, val.answer) == ("valid_2", "Nodule.")
  assert built.info["media"] == {"volumes": 2}
  assert built.info["absent"] == ["**/valid_predicted_labels.csv"]
  assert [reason.split(";")[0] for reason in built.reasons] == [
    "'dataset/train/train_9/train_9_a/train_9_a_1.nii.gz' does not exist",
    "'dataset/train/train_9/train_9_a/train_9_a_1.nii.gz' does not exist",
    "has an empty 'VolumeName'",
  ]
