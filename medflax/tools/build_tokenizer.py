"""Builds the tokenizer shipped with medflax: a byte-level BPE of 1,024 tokens.

  python -m medflax.tools.build_tokenizer --to medflax/data/assets/tokenizer.json

It is trained on the words below, so it needs no download and the same code gives the same file.
Bytes are the fallback: any text survives the round trip.
"""

import argparse
import string
from collections.abc import Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from medflax.data.phantoms import INVENTED_WORDS
from medflax.data.tokenizer import SHIPPED_SPECIALS
from medflax.utils import write_atomic

VOCAB_SIZE = 1024

# A word with the space before it and the colon behind it (" Answer:"), one digit, one run of
# punctuation, or the white space that is left.
PIECES = r" ?\p{L}[\p{L}\p{M}]*:?| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+|\p{M}+"

PROMPT_WORDS = "Question: Answer: Impression: Findings: Report: Choices: Rationale: or"
# Of the phantoms' questions and answers. Written out, so that rewording one of those leaves the
# ids, and with them every checkpoint, as they are.
PHANTOM_WORDS = """
CT Does How Large MR Microscopy No One Side Size Small Three Two Ultrasound Which Write a abscess
abscesses across along an and atelectasis band base because block bodies body border branches
bubbles by calcifications casts cloud cluster consolidation core crescent crossed crosses cyst
cysts dark dense does dots edges effusion finding foreign form fracture from gas haemorrhage has
image in infarct infarcts inwards is it large left level lie lies line lines lucent many mass
masses microscopy midline modality no nodule nodules oedema of on one or outside parallel
pneumothorax points pool radiate report right ring round several sharp short show sideways small
spiculated spikes spot straight streaks surrounds the thin this three tiny together top two
ultrasound volume wedge why word yes zigzag
"""
QUESTION_WORDS = """
What Which Where How Is Are Does Can There
what which where how many much is are was were does do did can has have this that these there
the a an of in on at to from by with without for as not no yes it its be been or and than both
image images picture scan slice volume shown show shows seen see visible present absent appear
evidence kind type name describe write short report explain answer question following
"""
MEDICAL_WORDS = """
modality X-ray radiograph CT MR MRI ultrasound microscopy pathology histology angiogram
T1 T2 FLAIR contrast weighted dose plane axial coronal sagittal frontal lateral view
chest brain head neck abdomen pelvis spine heart lung lungs liver kidney spleen bone skin breast
left right upper lower middle anterior posterior central bilateral side sided lobe
lesion mass nodule nodules cyst tumour tumor calcification fracture effusion pneumonia opacity
haemorrhage hemorrhage edema infarct ring stripe cavity fluid air normal abnormal finding findings
disease diagnosis patient small medium large enlarged size count diameter mm cm one two three four
zero five six seven eight nine ten bright dark round irregular solid hollow acute chronic benign
malignant diffuse focal intensity density signal dense soft tissue organ structure region
hippocampus volume larger smaller increased decreased multiple single suggests consistent likely
"""


def sentences() -> Iterator[str]:
  """The training text; what is repeated more gets its tokens first."""
  yield from ["Question: x?"] * 10_000
  for word in (*PROMPT_WORDS.split(), *INVENTED_WORDS):
    yield from [f" {word}"] * 5000
  for word in PHANTOM_WORDS.split():
    yield from [f" {word}"] * 1000
  for mark in string.digits + ",.-()":
    yield from [f"{mark} {mark}"] * 500
  for word in QUESTION_WORDS.split():
    yield from [f" {word}"] * 200
  for word in MEDICAL_WORDS.split():
    yield from [f" {word}"] * 20


def build() -> tokenizers.Tokenizer:
  """Trains the tokenizer; deterministic."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(PIECES), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=VOCAB_SIZE,
    special_tokens=list(SHIPPED_SPECIALS),
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(sentences(), trainer)
  return tokenizer


def main() -> None:
  """Builds the tokenizer and writes it to `--to`."""
  parser = argparse.ArgumentParser(description="Builds the shipped tokenizer.")
  parser.add_argument("--to", required=True, help="the tokenizer.json to write")
  arguments = parser.parse_args()
  tokenizer = build()
  write_atomic(arguments.to, tokenizer.to_str(pretty=True) + "\n")
  print(f"{arguments.to}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
  main()
