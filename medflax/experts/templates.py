"""Visual Med-Alpaca's three prompts, verbatim."""

WITH_INPUT = (
  "Below is an instruction that describes a task, paired with an input that provides further "
  "context{}. Write a response that appropriately completes the request.\n\n"
  "### Instruction:\n{{question}}\n\n### Input:\n{{{}}}\n\n### Response:\n"
)
# github.com/cambridgeltl/visual-med-alpaca, verbatim: with what an expert says of an image, as
# Alpaca's training data have it (key `input`), without an input.
PROMPTS = {
  "image": WITH_INPUT.format(" of an uploaded image", "caption"),
  "training": WITH_INPUT.format("", "input"),
  "text": "Below is an instruction that describes a task. Write a response that appropriately "
  "completes the request.\n\n### Instruction:\n{question}\n\n### Response:\n",
}
STOP = "###"  # no response holds it: an answer that runs on begins the next instruction
