def test_roco(write, picture, build, shades):
  folder = "data/train/radiology"
  link = "wget -nd ftp://ftp.ncbi.nlm.nih.gov/pub/pmc/oa_package/8d/72/PMC7.tar.gz"
  write(
    f"{folder}/captions.txt",
    "ROCO_00001\t Chest X-ray\twith a tab.\nROCO_00002\t Gone.\nROCO_00003\t Broken.\nROCO_4\n",
  )
  write(f"{folder}/dlinks.txt", f"ROCO_00001\t{link}\tg001.jpg\nROCO_00003\t{link}\tg003.jpg\n")
  write("data/test/radiology/captions.txt", "ROCO_00009\t A scan.\n")
  write("data/test/radiology/dlinks.txt", f"ROCO_00009\t{link}\tg009.jpg\n")
  picture(f"{folder}/images/PMC7_g001.jpg", 10)
  picture(f"{folder}/images/PMC7_g003.jpg", 20, broken=True)
  picture("data/test/radiology/images/PMC7_g009.jpg", 30)
  built = build("roco")
  [sample] = built.samples["train"]
  assert (sample.id, sample.answer) == ("ROCO_00001", "Chest X-ray\twith a tab.")
  assert (sample.task, sample.group, shades(sample)) == ("caption", "PMC7", [10])
  assert sample.meta == {"answer_type": "open"}
  assert [shades(sample) for sample in built.samples["test"]] == [[30]]
  assert sorted(built.reasons) == [
    "ROCO_00002 has no line in dlinks.txt, so its image is unknown",
    f"{folder}/images/PMC7_g003.jpg is broken",
    "has 1 columns instead of 2",
  ]


def test_roco_v2(write, picture, build, shades):
  write("train_captions.csv", 'ID,Caption\nROCOv2_1,"CT, axial."\nROCOv2_2,Broken.\n')
  write("valid_captions.csv", "ID,Caption\nROCOv2_3,MRI.\n")
  write("license_information.csv", "ID,PMCID\nROCOv2_1,PMC5\n")
  picture("train/ROCOv2_1.jpg", 10)
  picture("train/ROCOv2_2.jpg", 10, broken=True)
  picture("valid/ROCOv2_3.jpg", 30)
  built = build("roco_v2")
  [sample] = built.samples["train"]
  assert (sample.id, sample.answer, sample.group) == ("ROCOv2_1", "CT, axial.", "PMC5")
  assert shades(sample) == [10]
  [val] = built.samples["val"]
  assert (val.group, shades(val)) == ("ROCOv2_3", [30])
  assert len(built.reasons) == 1 and "ROCOv2_2.jpg is broken" in built.reasons[0]
  assert built.info["absent"] == ["test_captions.csv"]
