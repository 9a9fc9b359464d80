"""Images, volumes, or both: whether questions about the one teach anything of the other."""

from experiments.study import vary

CONFIG = "configs/flamingo_med.py"
BASELINE = "train=both"
IMAGES, VOLUMES = ("finding", "modality"), ("finding_3d", "modality_3d")
METRICS = tuple(f"{task}/0shot/exact_match" for task in (*IMAGES, *VOLUMES))
SEEDS = (0, 1, 2)


def mixture(tasks):
  common = {"num_shots": (0, 0), "weight": 1.0, "targets": "all"}
  return {task: {"task": task, **common} for task in tasks}


def runs():
  sides = {"images": IMAGES, "volumes": VOLUMES, "both": IMAGES + VOLUMES}
  return vary("config.data.train", {side: mixture(tasks) for side, tasks in sides.items()})
