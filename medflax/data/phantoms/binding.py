"""Novel-word binding: invented words that mean a finding only for the length of an episode.

An episode picks `ways` findings and as many invented words. Its support examples show which word
names which finding; the query asks for the word of one more image. Every image is drawn anew, so
the finding is all that the images of a way share, and the words mean nothing beforehand: only
reading the support, and seeing what it shows, answers better than chance.

Episodes come in groups of ways² (quads for two ways) that share findings, words and the support
images. Member m of a group shifts the words round the findings by m // ways and queries way
m % ways with that way's one query image. So, within a group,

* the prompt without support occurs once with every word as its answer, and
* for given support examples, every word is the answer once.

A model that ignores the support, or the query's image, scores 1 / ways at most on each group, and
just that if it names one of the group's words. Without support a word is right 1 time in 16.
"""

import numpy as np

from medflax.data.phantoms.findings import FINDINGS
from medflax.data.phantoms.questions import Asked, draw_scene

# Short, pronounceable and of no meaning; the shipped tokenizer has a token for each.
INVENTED_WORDS = (
  "dax", "wug", "blick", "fep", "toma", "zorp", "kiv", "lorp",
  "mib", "nuz", "pask", "quib", "rell", "sulo", "vash", "yeg",
)  # fmt: skip
QUESTION = "Which word?"


def even_ways(rng: np.random.Generator, num_shots: int, ways: int) -> list[int]:
  """The way of every support example: numbers of examples differ by 1 at most, random order."""
  repeated = np.concatenate([rng.permutation(ways) for _ in range(-(-num_shots // ways))] or [[]])
  return rng.permutation(repeated[:num_shots]).astype(int).tolist()


def _words(member: int, ways: int) -> list[str]:
  """The words of a member's group, dealt like cards: none twice before a deal is used up.

  So whatever one word a model always says, it is right equally often.
  """
  group, tables = member // ways**2, len(INVENTED_WORDS) // ways
  deal, table = divmod(group, tables)
  shuffled = np.random.default_rng((ways, deal)).permutation(INVENTED_WORDS).tolist()
  return shuffled[table * ways : (table + 1) * ways]


def binding_episode(
  rng: np.random.Generator, member: int, num_shots: int, kind: str, ways: int
) -> tuple[list[Asked], int, list[Asked]]:
  """Plans a member of the group that `rng` stands for.

  The question does not name the words. Asked with support, it is a choice among the group's
  words, which the support shows; without, among all the invented words.

  Returns:
    The queries of all ways, the number of the one this member asks, and the support. Scenes,
    words and orders are the same for all members.
  """
  findings = rng.choice(list(FINDINGS), ways, replace=False).tolist()
  words = _words(member, ways)
  choices = tuple(sorted(words)) if num_shots else INVENTED_WORDS
  shift, query = divmod(member % ways**2, ways)

  def ask(way: int) -> Asked:
    scene = draw_scene(rng, kind, findings[way])
    return Asked(scene, QUESTION, words[(way + shift) % ways], choices, "binding")

  queries = [ask(way) for way in range(ways)]
  return queries, query, [ask(way) for way in even_ways(rng, num_shots, ways)]
