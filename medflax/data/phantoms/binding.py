"""Novel-word binding: invented words that mean a finding only for the length of an episode.

An episode picks `ways` findings and as many invented words. Its support examples show which word
names which finding; the query asks for the word of one more image. Every image is drawn anew, so
the finding is all that the images of a way share, and the words mean nothing beforehand: only
reading the support, and seeing what it shows, answers better than chance.

Episodes come in groups of ways² (quads for two ways) that share findings, words, the order of the
options and the support images. Member m of a group shifts the words round the findings by
m // ways and queries way m % ways with that way's one query image. So, within a group,

* the prompt without support occurs once with every word as its answer, and
* for given support examples, every word is the answer once.

A model that ignores the support, or the query's image, scores exactly 1 / ways on each group.
"""

import numpy as np

from medflax.data.phantoms.findings import FINDINGS
from medflax.data.phantoms.questions import Asked, draw_scene

# Short, pronounceable and of no meaning; the shipped tokenizer has a token for each.
INVENTED_WORDS = (
  "dax", "wug", "blick", "fep", "toma", "zorp", "kiv", "lorp",
  "mib", "nuz", "pask", "quib", "rell", "sulo", "vash", "yeg",
)  # fmt: skip


def even_ways(rng: np.random.Generator, num_shots: int, ways: int) -> list[int]:
  """The way of every support example: numbers of examples differ by 1 at most, random order."""
  repeated = np.concatenate([rng.permutation(ways) for _ in range(-(-num_shots // ways))] or [[]])
  return rng.permutation(repeated[:num_shots]).astype(int).tolist()


def binding_episode(
  rng: np.random.Generator, member: int, num_shots: int, kind: str, ways: int
) -> tuple[list[Asked], int, list[Asked]]:
  """Plans a member of the group that `rng` stands for.

  Returns:
    The queries of all ways, the number of the one this member asks, and the support. Scenes,
    words and orders are the same for all members.
  """
  findings = rng.choice(list(FINDINGS), ways, replace=False).tolist()
  words = rng.choice(INVENTED_WORDS, ways, replace=False).tolist()
  options = tuple(rng.permutation(words).tolist())
  question = f"{', '.join(options[:-1])} or {options[-1]}?"
  shift, query = divmod(member % ways**2, ways)

  def ask(way: int) -> Asked:
    scene = draw_scene(rng, kind, findings[way])
    return Asked(scene, question, words[(way + shift) % ways], options, "binding")

  queries = [ask(way) for way in range(ways)]
  return queries, query, [ask(way) for way in even_ways(rng, num_shots, ways)]
