r"""Tells whether a run's answers depend on the image that is asked about.

python -m medflax.tools.image_sensitivity WORKDIR --eval binding --questions 32

Some questions of an evaluator are asked as they are, with another image and with a black one; all
tokens stay. A model whose answers and likelihoods do not move does not see the image: a media rule
that hides it, a checkpoint that did not load, a gate that is still shut. Exit status: 0 if they
move, 1 if not, 2 after a mistake in the command.
"""

import dataclasses
import pathlib
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, PyTree

from medflax.data.documents import Episode, Media
from medflax.evals.answering import Answerer
from medflax.evals.asking import Asker, answer, under_controls
from medflax.evals.base import EvalContext, put_all
from medflax.evals.demonstrations import make_demonstrations, make_support
from medflax.evals.fewshot_vqa import FewshotVQA, Settings
from medflax.evals.trials import Trial
from medflax.flags import Parser, add_model
from medflax.inference.decoding import make_decoder
from medflax.inference.features import MediaFeatures, embed_with
from medflax.loading import Loaded, load_model
from medflax.tools.evaluate import make_evaluator
from medflax.utils import UserError, pick

CHANGES = {"shuffled": "another image", "no_image": "a black image"}
NOISE = 1e-3  # nats; rounding moves a log-probability by less


@dataclasses.dataclass(frozen=True)
class Change:
  """What became of the answers with other images.

  Attributes:
    questions: that could be asked so.
    answers: that are another text.
    mean, largest: change of the right answer's log-probability, without sign, in nats.
  """

  questions: int
  answers: int
  mean: float
  largest: float

  @property
  def depends(self) -> bool:
    """Whether anything moved by more than rounding."""
    return self.answers > 0 or self.largest > NOISE


def image_sensitivity(
  loaded: Loaded, name: str = "", *, num_questions: int = 32, num_shots: int | None = None
) -> dict[str, Change]:
  """Asks with the query's image, with another and with a black one.

  Args:
    loaded: the model.
    name: of the evaluator in its config whose questions are asked; "": the first that has any.
    num_questions: how many.
    num_shots: support examples of each; None: the most that the evaluator has.

  Returns:
    What changed, by the keys of `CHANGES`.

  Raises:
    UserError: if there is no such evaluator, or it has no questions about media.
  """
  sections = loaded.config.evals.to_dict()
  asking = {key: x for key, x in sections.items() if x["type"] == "fewshot_vqa"}
  if not asking:
    raise UserError(f"{loaded.config.name} has no evaluator of type fewshot_vqa, which asks")
  name = name or next(iter(asking))
  section = pick(asking, name, "evaluator that asks")
  with tempfile.TemporaryDirectory() as nowhere:
    evaluator = make_evaluator(loaded, name, section, pathlib.Path(nowhere))
  assert isinstance(evaluator, FewshotVQA)
  settings, context = evaluator.settings, evaluator.context
  shots = max(settings.num_shots) if num_shots is None else num_shots
  with loaded.running():
    trials = _answered(name, settings, context, loaded.params(), shots, num_questions)
  return _changes(trials)


def _nothing(media: Sequence[Media]) -> Float[np.ndarray, "n d"]:
  raise AssertionError(f"{len(media)} media to be compared")


def _answered(
  name: str,
  settings: Settings,
  context: EvalContext,
  params: PyTree,
  num_shots: int,
  num_questions: int,
) -> list[Trial]:
  """All trials with their replies; the right answer is the first candidate."""
  put = lambda batch: put_all(batch, context)
  features = MediaFeatures(embed_with(context.model, params, put), settings.batch_size)
  asker = Asker(context.tokenizer, context.prompt, context.data_config, features, None)
  support = make_support(
    name,
    make_demonstrations(name, {}),
    context.dataset,
    task=settings.task,
    split=settings.split,
    where=settings.where,
    num_shots=(num_shots,),
    num_episodes=num_questions,
  )
  # Drawn at random, for which no media are compared.
  episodes = support.read(_nothing).episodes(num_shots, context.seed)
  asked = []
  for index in range(len(episodes)):
    episode = episodes[index]
    query = dataclasses.replace(episode.query, choices=(episode.query.answer,))
    asked.append(asker.trial(Episode(query, episode.support), index=index))
  asked = [trial for trial in asked if trial.kinds]
  if not asked:
    raise UserError(f"task {settings.task} asks about no media")
  trials = asked + under_controls(asked, tuple(CHANGES), (context.seed, num_shots), [])
  features.finish()
  answerer = Answerer(
    model=context.model,
    tokenizer=context.tokenizer,
    prompt=context.prompt,
    inline=context.data_config.media_tokens > 0,
    put=put,
    decoder=make_decoder({"type": "greedy", "max_new_tokens": 16}),
    batch_size=settings.batch_size,
  )
  answer(trials, answerer, features, params)
  return trials


def _changes(trials: Sequence[Trial]) -> dict[str, Change]:
  by_condition: dict[str, dict[int, Trial]] = defaultdict(dict)
  for trial in trials:
    by_condition[trial.condition][trial.index] = trial
  plain, changes = by_condition["image"], {}
  for condition in CHANGES:
    pairs = [(plain[index], other) for index, other in by_condition[condition].items()]
    if pairs:
      moved = [abs(a.reply.logprobs[0] - b.reply.logprobs[0]) for a, b in pairs]
      another = sum(a.reply.text != b.reply.text for a, b in pairs)
      changes[condition] = Change(len(pairs), another, float(np.mean(moved)), max(moved))
  return changes


def told(changes: Mapping[str, Change]) -> str:
  """The table, then the verdict."""
  lines = [
    f"{CHANGES[name]:14} {change.answers:4} of {change.questions} answers change; the right one's "
    f"log-probability by {change.mean:.4f} nats on average, {change.largest:.4f} at most"
    for name, change in changes.items()
  ]
  depends = any(change.depends for change in changes.values())
  return "\n".join([*lines, f"answers {'depend' if depends else 'do not depend'} on the image"])


def main(argv: Sequence[str]) -> int:
  """Returns the exit status; see the module's docstring."""
  parser = Parser("medflax.tools.image_sensitivity", __doc__)
  add_model(parser)
  parser.add_argument("--eval", default="", help="default: the config's first that asks questions")
  parser.add_argument("--questions", type=int, default=32)
  parser.add_argument("--shots", type=int, help="default: the most that the evaluator has")
  try:
    flags, overrides = parser.parse(argv)
    loaded = load_model(
      flags.model,
      checkpoint=flags.checkpoint,
      step=flags.step,
      overrides=overrides,
    )
    changes = image_sensitivity(
      loaded, flags.eval, num_questions=flags.questions, num_shots=flags.shots
    )
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(told(changes))
  return 0 if any(change.depends for change in changes.values()) else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
