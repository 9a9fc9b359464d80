"""The data sets of signals: PTB-XL and WFDB records with alarms."""

import json

import numpy as np
import pytest

from medflax.data.builders.store import NOTED
from medflax.tools import prepare_data


@pytest.fixture
def record(write):
  """Writes a WFDB record of two signals in format 16, 200 units a millivolt, eight samples."""

  def run(name, *comments, broken=False):
    samples = np.stack([np.arange(8) * 100, np.arange(8) * -50], axis=1).astype("<i2")
    stem = name.rsplit("/", 1)[-1]
    lines = [f"{stem} 2 500 8"]
    for lead, column in zip(("I", "V1"), samples.T, strict=True):
      checksum = (int(column.sum()) + 2**15) % 2**16 - 2**15
      lines.append(f"{stem}.dat 16 200/mV 16 0 {column[0]} {checksum} 0 {lead}")
    write(f"{name}.hea", "\n".join([*lines, *(f"#{comment}" for comment in comments)]) + "\n")
    write(f"{name}.dat", samples.tobytes()[: 20 if broken else None])

  return run


def test_ptb_xl(write, record, build):
  for number in (1, 2, 3):
    record(f"records500/00000/0000{number}_hr", broken=number == 2)
  write(
    "scp_statements.csv",
    ",description,diagnostic,form,rhythm,diagnostic_class\n"
    "NORM,normal ECG,1.0,,,NORM\nIMI,inferior infarction,1.0,,,MI\n"
    "LVOLT,low voltage,,1.0,,\nSR,sinus rhythm,,,1.0,\n",
  )
  rows = [
    "1,15709.0,sinusrhythmus,\"{'NORM': 100.0, 'LVOLT': 0.0, 'SR': 0.0}\",3,00001",
    "2,2.0,kein,\"{'SR': 0.0}\",3,00002",
    "3,3.0,,\"{'NORM': 50.0, 'IMI': 50.0}\",10,00003",
    "4,4.0,x,nonsense,9,00003",
    "5,5.0,x,{},9,00009",
  ]
  lines = [row.replace(",0000", ",records500/00000/0000") + "_hr" for row in rows]
  header = "ecg_id,patient_id,report,scp_codes,strat_fold,filename_hr"
  write("ptbxl_database.csv", "\n".join([header, *lines]))
  built = build("ptb_xl")
  diagnosis, form, rhythm, kind, report = built.samples["train"]
  assert (diagnosis.id, diagnosis.answer, diagnosis.group) == (
    "1-diagnosis",
    "normal ECG",
    "15709.0",
  )
  assert (form.task, form.answer, rhythm.answer) == ("form", "low voltage", "sinus rhythm")
  assert (kind.answer, len(kind.choices), kind.meta["answer_type"]) == ("normal ECG", 5, "closed")
  assert (report.task, report.answer, report.choices) == ("report", "sinusrhythmus", ())
  [signal] = diagnosis.media
  assert (signal.kind, signal.array.shape, signal.array.dtype) == ("signal", (8, 2), np.float32)
  assert signal.array[0, 0] == 0 and signal.array[-1, 0] == 1 and signal.array[0, 1] == 1
  assert [(s.task, s.answer) for s in built.samples["test"]] == [
    ("diagnosis", "normal ECG, inferior infarction")
  ]
  assert built.data.media_per_sample["signal"] == 1
  assert sorted(set(built.reasons)) == [
    "has 'scp_codes' that are no dict",
    "record 5 has no file records500/00000/00009_hr.hea",
    "records500/00000/00002_hr.hea is broken",
  ]


def test_alarms(source, tmp_path, record, build):
  record("training/a1", "Asystole", "False alarm")
  record("training/a2", "69 M 1085 1629 x1", "Aldomet")
  record("training/a3", "Asystole", broken=True)
  record("training/a4")
  (source / "training/a4.dat").rename(tmp_path / "a4.dat")
  (source / "training/a4.dat").symlink_to(tmp_path / "a4.dat")
  built = build("wfdb_alarms")
  found = {sample.id: sample for samples in built.samples.values() for sample in samples}
  assert set(found) == {
    "training/a1-signals",
    "training/a1-alarm",
    "training/a1-alarm_is_true",
    "training/a2-signals",
  }
  assert found["training/a2-signals"].answer == "I, V1"
  assert found["training/a1-alarm"].answer == "asystole"
  assert found["training/a1-alarm_is_true"].answer == "no"
  assert found["training/a1-alarm_is_true"].choices == ("yes", "no")
  assert (found["training/a1-alarm"].group, found["training/a1-alarm"].task) == (
    "training/a1",
    "alarm",
  )
  assert "Aldomet" not in repr(found)
  assert built.info["noted"] == 0
  broken, outside = built.reasons
  assert broken == "training/a3.hea is broken"
  assert "leads out of the data folder" in outside


def test_missing_samples_are_noted_and_comments_are_not(source, tmp_path, record, capsys):
  record("training/a1", "Asystole", "Secret 69 M")
  record("training/a2")
  path = source / "training/a1.dat"
  samples = np.frombuffer(path.read_bytes(), "<i2").reshape(8, 2).copy()
  samples[3, 1] = -(2**15)
  path.write_bytes(samples.tobytes())
  header = source / "training/a1.hea"
  lines = header.read_text().splitlines()
  total = (int(samples[:, 1].sum()) + 2**15) % 2**16 - 2**15
  lines[2] = " ".join([*lines[2].split()[:6], str(total), "0", "V1"])
  header.write_text("\n".join(lines))
  arguments = ["wfdb_alarms", "--from", str(source), "--to", str(tmp_path / "to")]
  assert prepare_data.main(arguments) == 0
  out = capsys.readouterr().out
  assert "noted: 1 media files with something odd, listed in noted.jsonl" in out
  [noted] = (tmp_path / "to" / NOTED).read_text().splitlines()
  assert json.loads(noted) == {
    "path": "training/a1.hea",
    "notes": "1 samples of channel 2 missing, interpolated",
  }
  assert "Secret" not in out + noted
