REPORTS = "uid,MeSH,Problems,image,indication,comparison,findings,impression\n"


def test_the_tables_of_kaggle(write, picture, build, shades):
  folder = "images/images_normalized"
  for name, value in (("1_l.png", 10), ("1_f.png", 20), ("2_f.png", 30)):
    picture(f"{folder}/{name}", value, broken=name == "2_f.png")
  write(
    "indiana_projections.csv",
    "uid,filename,projection\n1,1_l.png,Lateral\n1,1_f.png,Frontal\n2,2_f.png,Frontal\n"
    "3,1_f.png,Frontal\n",
  )
  write(
    "indiana_reports.csv",
    REPORTS
    + '1,normal,normal,Chest,Cough,None,"Clear lungs, XXXX.",Normal.\n'
    + "2,normal,normal,Chest,,,Clear.,\n"
    + "3,normal,normal,Chest,,,,\n"
    + "4,normal,normal,Chest,,,Clear.,Normal.\n",
  )
  built = build("iu_xray")
  [samples] = built.samples.values()
  findings, impression = samples
  assert (findings.id, findings.task, findings.group) == ("1-findings", "findings", "1")
  assert (findings.answer, impression.answer) == ("Clear lungs, XXXX.", "Normal.")
  assert (impression.id, impression.task) == ("1-impression", "impression")
  assert shades(findings) == [20, 10]
  assert findings.meta == {"indication": "Cough", "Problems": "normal", "answer_type": "open"}
  assert sorted(built.reasons) == [
    f"{folder}/2_f.png is broken",
    "report 3 has neither findings nor impression",
    "report 4 has no images",
  ]
  assert built.info["rows"] == 4


def test_the_reports_of_open_i(write, picture, build, shades):
  picture("NLMCXR_png/CXR1_1_IM-1.png", 50)
  write(
    "ecgen-radiology/1.xml",
    '<eCitation><uId id="CXR1"/><MedlineCitation><Article><Abstract>'
    '<AbstractText Label="INDICATION">Pain</AbstractText>'
    '<AbstractText Label="FINDINGS">Clear.</AbstractText>'
    '<AbstractText Label="IMPRESSION"/></Abstract></Article></MedlineCitation>'
    '<parentImage id="CXR1_1_IM-1"/></eCitation>',
  )
  write("ecgen-radiology/2.xml", "<eCitation><uId")
  built = build("iu_xray_openi")
  [[sample]] = built.samples.values()
  assert (sample.id, sample.answer, shades(sample)) == ("CXR1-findings", "Clear.", [50])
  assert sample.meta["indication"] == "Pain"
  assert len(built.reasons) == 1
  assert "2.xml is truncated or broken" in built.reasons[0]


def test_the_split_of_r2gen(write, picture, build, shades):
  picture("images/CXR1/0.png", 60)
  picture("images/CXR1/1.png", 70)
  views = ["CXR1/0.png", "CXR1/1.png"]
  study = {"id": "CXR1", "report": "Clear.", "image_path": views, "split": "val"}
  write("annotation.json", {"train": [], "val": [study], "    ": [{**study, "image_path": []}]})
  built = build("iu_xray_r2gen")
  [sample] = built.samples["val"]
  assert (sample.id, sample.answer, shades(sample)) == ("CXR1-findings", "Clear.", [60, 70])
  assert built.reasons == ["report CXR1 has no images"]
