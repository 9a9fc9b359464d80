def test_projection_and_sex(write, picture, build, shades):
  for i in range(20):
    picture(f"{'png' if i else 'jpg'}/i{i}.{'png' if i else 'jpg'}", i, broken=i == 7)
  rows = [f"p{i // 2},i{i},{'mf'[i % 2]},{'pa' if i < 5 else 'ap'}" for i in range(20)]
  rows += ["p99,i3,,ap", "p99,,f,ap"]
  write("data.csv", "patient_id,image_id,sex,projection\n" + "\n".join(rows) + "\n")
  built = build("hannover_cxr")
  found = {sample.id: sample for samples in built.samples.values() for sample in samples}
  assert len(found) == 2 * 19
  projection, sex = found["i0-projection"], found["i0-sex"]
  assert (projection.answer, sex.answer) == ("posteroanterior", "male")
  assert projection.choices == ("anteroposterior", "posteroanterior")
  assert (projection.task, projection.group, shades(projection)) == ("projection", "p0", [0])
  assert (found["i19-sex"].answer, found["i19-sex"].task) == ("female", "sex")
  assert projection.meta == {"answer_type": "closed"}
  assert built.info["shared_groups"] == {}
  assert sorted(built.reasons) == [
    "has an empty 'image_id'",
    "id 'i3-projection' is that of an earlier row",
    *["png/i7.png is broken"] * 2,
  ]
