def test_books_become_documents(write, picture, build, shades):
  picture("Anatomy/img/heart one.png", 10)
  picture("Anatomy/img/lung.jpg", 20)
  picture("Pathology/cell.png", 30, broken=True)
  write(
    "Anatomy/ch1.html",
    "<html><head><title>No</title></head><body><h1>The heart</h1>"
    "<script>no()</script><p>It <b>beats</b> &amp; pumps.</p>"
    '<img src="img/heart%20one.png"><p>Figure 1.</p><p>Buy this book!</p>'
    '<div>The lung<img src="img/lung.jpg"/></div></body></html>',
  )
  write("Anatomy/ch2.html", '<p>Buy this book!</p><p>New.</p><img src="img/lung.jpg">')
  write("Pathology/ch1.html", '<img src="cell.png"><p>A cell.</p>')
  write("Pathology/ch2.html", '<img src="../../out.png"><p>A secret.</p>')
  write("Pathology/ch3.html", b"<p>\xff\xfe</p>")
  built = build("textbooks")
  [samples] = built.samples.values()
  first, second = samples
  assert first.id == "Anatomy/ch1-0"
  assert first.answer == (
    "The heart It beats & pumps. <image>Figure 1. Buy this book! The lung <image>"
  )
  assert (first.task, first.group, shades(first)) == ("page", "Anatomy", [10, 20])
  assert (second.answer, shades(second)) == ("New. <image>", [20])
  broken, outside, encoding = sorted(built.reasons, key=lambda reason: "UTF" in reason)
  assert "cell.png is broken" in broken + outside
  assert "leads out of the data folder" in broken + outside
  assert encoding == "Pathology/ch3.html is not UTF-8; download it again"
  documents = built.data.documents("page", first.source.split)
  assert documents[0].id == "Anatomy/ch1-0"
