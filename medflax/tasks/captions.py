"""Captions of figures, as OpenFlamingo's evaluation asks for them."""

from medflax.tasks.base import Task

TASKS = {
  f"{data}/caption": Task(
    data=data,
    source="COCO's caption metrics (Chen et al. 2015, arXiv 1504.00325) and the prompt, shots and "
    "beams of mlfoundations/open_flamingo 2.0, on medical figures",
    version=2,
    task="caption",
    num_shots=(0, 4, 8),
    prompt=dict(question="Output:", answer="{answer}"),
    decoding=dict(type="beam", num_beams=3, length_penalty=0.0, ranking="whole", max_new_tokens=20),
    metrics=("cider", "coco_bleu4", "coco_rougeL", "meteor"),
  )
  for data in ("roco", "roco_v2", "pmc_oa", "pmc_oa_beta")
}
