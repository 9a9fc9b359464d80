"""The pages in a browser: filters, search, leafing, and what the page may run."""

import re
import shutil
import subprocess

import pytest

from medflax.report.evaluation import write_evaluation
from medflax.report.results import read_evaluation
from tests.report import made

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look at the page with"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return made.make_scored_evaluation(tmp_path_factory.mktemp("evals") / "plane/400")


@pytest.fixture(scope="module")
def look(folder, tmp_path_factory):
  """`look(filter)` → the page's HTML after its script has run, opened with `#filter`."""
  url = write_evaluation(folder).as_uri()
  profile = tmp_path_factory.mktemp("profile")

  def look(fields: str = "") -> str:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--disable-background-networking", f"--user-data-dir={profile}"]
    command += ["--virtual-time-budget=4000", f"{url}#{fields}"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode("utf-8")

  return look


def _count(page: str) -> str:
  [told] = re.findall(r'<output id="count">(.*?)</output>', page)
  return told


def test_the_first_page_of_all_answers(folder, look):
  page = look()
  total = len(read_evaluation(folder).answers)
  assert _count(page).startswith(f"{total} of {total}: ")
  assert page.count("<article") == 24
  assert '<button disabled="">← previous</button>' in page
  assert "1 – 24" in page
  assert page.count('src="data:image/png;base64,') >= 6
  assert page.count('<div class="candidates">') == 24


def test_the_address_holds_the_filters(folder, look):
  samples = read_evaluation(folder).answers
  chosen = [
    s
    for s in samples
    if not s["correct"] and s["num_shots"] == 4 and s["meta"]["location"] == "Spine"
  ]
  page = look("verdict=wrong&shots=4&location=Spine")
  assert _count(page) == f"{len(chosen)} of {len(samples)}: {len(chosen)} wrong"
  assert page.count('class="verdict wrong"') == min(len(chosen), 24)
  assert 'class="verdict right"' not in page


def test_links_of_the_confusion_show_its_answers(folder, look):
  page = write_evaluation(folder).read_text("utf-8")
  href, count = re.findall(r'href="#([^"]*prediction=%28other%29)">(\d+)<', page)[0]
  told = _count(look(href.replace("&amp;", "&")))
  assert told.startswith(f"{count} of ")


def test_words_and_ids_are_found(folder, look):
  samples = read_evaluation(folder).answers
  assert _count(look("words=OBLIQUE+think")).startswith("16 of ")  # shots, conditions, seeds
  asked = sum(s["id"] == "q7" for s in samples)
  assert _count(look("id=q7")).startswith(f"{asked} of ")
  assert _count(look("words=nothing+says+this")).startswith("0 of ")
  assert _count(look("location=nowhere")).startswith("0 of ")


def test_the_browser_runs_the_page_s_own_script_alone(folder, look):
  path = write_evaluation(folder)
  page = path.read_text("utf-8")
  injected = "<script>document.title = 'injected'</script><img src=x onerror='document.title=1'>"
  path.write_text(page.replace("</main>", f"{injected}</main>"))
  try:
    seen = look()
  finally:
    path.write_text(page)
  assert "<title>plane</title>" in seen
  assert _count(seen)
