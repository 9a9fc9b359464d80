"""VQA-Med 2019, 2020 and 2021 (Ben Abacha et al.), tasks of ImageCLEF."""

from medflax.tasks.base import Task

TASKS = {
  f"vqa_med_{year}/official": Task(
    data=f"vqa_med_{year}",
    source=f"abachaa/VQA-Med-{year}: strict accuracy and BLEU after lower-casing and without "
    "punctuation, the best of the reference answers",
    metrics=("vqa_med_accuracy", "vqa_med_bleu"),
    slice_by=("task",),
  )
  for year in (2019, 2020, 2021)
}
