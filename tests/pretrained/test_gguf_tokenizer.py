"""The vocabulary in a GGUF file becomes a tokenizer folder that splits text alike."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflax.data.tokenizer import SHIPPED, load_tokenizer
from medflax.pretrained import load_weights
from medflax.pretrained.gguf_tokenizer import BYTE, CONTROL, NORMAL, USER_DEFINED, tokenizer_files
from medflax.tools import export_weights, import_weights
from medflax.utils import UserError
from tests.pretrained.test_gguf_files import HEAD_DIM, HEADS, KV_HEADS, WIDTH, gguf

SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>"]
WHOLE = ["\n", "\n\n", "  ", "<b>"]  # with spaces as they are
MERGED = ["▁l", "in", "▁le", "ft", "ung", "▁lung", "▁left", "▁in", "un", "ng", "gi", "▁<"]
LETTERS = list("▁leftungiG<>b")
PIECES = {
  **dict.fromkeys(SPECIALS, (CONTROL, -1000.0)),
  **dict.fromkeys(WHOLE, (USER_DEFINED, -1000.0)),
  **{f"<0x{i:02X}>": (BYTE, 0.0) for i in range(256)},
  **{piece: (NORMAL, -float(i)) for i, piece in enumerate(MERGED + LETTERS)},
}
SENTENCEPIECE = dict(
  model="llama",
  tokens=list(PIECES),
  token_type=[kind for kind, _ in PIECES.values()],
  scores=[score for _, score in PIECES.values()],
  bos_token_id=2,
  eos_token_id=1,
  unknown_token_id=3,
  padding_token_id=0,
  add_space_prefix=False,
)
TEXT = st.lists(st.sampled_from([*WHOLE, *MERGED, *LETTERS, *SPECIALS, " ", "é", "肺", "\t"]))
TEXT = TEXT.map(lambda parts: "".join(parts).replace("▁", " "))


def folder(path, metadata):
  path.mkdir(exist_ok=True)
  for name, content in tokenizer_files(metadata, "x.gguf").items():
    (path / name).write_bytes(content)
  return str(path)


def sentencepiece(text):
  """SentencePiece's BPE (Kudo & Richardson 2018), as slow as it is plain."""
  text = text.replace(" ", "▁")
  whole = sorted((w.replace(" ", "▁") for w in WHOLE), key=len, reverse=True)
  symbols, i = [], 0  # text, and whether it may be merged
  while i < len(text):
    found = next((w for w in whole if text.startswith(w, i)), "")
    symbols.append((found or text[i], not found))
    i += len(symbols[-1][0])
  while True:
    pairs = [(i, symbols[i][0] + symbols[i + 1][0]) for i in range(len(symbols) - 1)]
    pairs = [(i, s) for i, s in pairs if symbols[i][1] and symbols[i + 1][1] and s in MERGED]
    if not pairs:
      break
    i, piece = min(pairs, key=lambda pair: (MERGED.index(pair[1]), pair[0]))
    symbols[i : i + 2] = [(piece, True)]
  ids = {piece.replace(" ", "▁"): i for i, piece in enumerate(PIECES)}
  for symbol, _ in symbols:
    if symbol in ids:
      yield ids[symbol]
    else:
      yield from (ids[f"<0x{byte:02X}>"] for byte in symbol.encode())


@pytest.fixture(scope="module")
def like_gemma(tmp_path_factory):
  return load_tokenizer(folder(tmp_path_factory.mktemp("tokenizer"), SENTENCEPIECE))


@given(text=TEXT)
@settings(max_examples=300)
def test_pieces_are_sentencepieces(like_gemma, text):
  assert like_gemma.encode(text) == list(sentencepiece(text))
  assert like_gemma.decode(like_gemma.encode(text)) == text


def test_named_tokens_are_known(like_gemma):
  t = like_gemma
  assert (t.pad_id, t.eos_id, t.bos_id) == (0, 1, 2)
  assert t.decode([2, *t.encode(" lung"), 1, 0]) == " lung"
  assert t.vocab_size == len(PIECES) + 2  # <image> and <|endofchunk|>


def test_a_space_goes_before_the_text_unless_the_file_says_no(tmp_path):
  metadata = {k: x for k, x in SENTENCEPIECE.items() if k != "add_space_prefix"}
  t = load_tokenizer(folder(tmp_path, metadata))
  lung = SENTENCEPIECE["tokens"].index("▁lung")
  assert t.encode("lung") == [lung]
  assert t.decode([lung]) == "lung"


def test_the_tokenizer_itself_frames_texts_as_the_file_says(tmp_path):
  import transformers

  loaded = transformers.AutoTokenizer.from_pretrained(folder(tmp_path / "a", SENTENCEPIECE))
  assert loaded("lung")["input_ids"][0] == loaded.bos_token_id
  metadata = SENTENCEPIECE | dict(add_bos_token=False, add_eos_token=True)
  loaded = transformers.AutoTokenizer.from_pretrained(folder(tmp_path / "b", metadata))
  ids = loaded("lung")["input_ids"]
  assert ids[0] != loaded.bos_token_id
  assert ids[-1] == loaded.eos_token_id


def byte_level(pre):
  """The shipped tokenizer as llama.cpp would write it."""
  shipped = json.loads(SHIPPED.read_text())
  vocabulary, merges = shipped["model"]["vocab"], shipped["model"]["merges"]
  special = {token["content"] for token in shipped["added_tokens"]}
  tokens = sorted(vocabulary, key=vocabulary.__getitem__)
  return dict(
    model="gpt2",
    pre=pre,
    tokens=tokens,
    token_type=[CONTROL if token in special else NORMAL for token in tokens],
    merges=[" ".join(merge) for merge in merges],
    padding_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
  )


@pytest.fixture(scope="module")
def like_gpt2(tmp_path_factory):
  return load_tokenizer(folder(tmp_path_factory.mktemp("tokenizer"), byte_level("gpt-2")))


@given(text=st.text())
def test_bytes_are_merged_as_before(like_gpt2, text):
  assert like_gpt2.encode(text) == load_tokenizer().encode(text)
  assert like_gpt2.decode(like_gpt2.encode(text)) == text


@pytest.mark.parametrize(("pre", "most"), [("llama-bpe", 3), ("qwen2", 1)])
def test_digits_are_grouped(tmp_path, pre, most):
  t = load_tokenizer(folder(tmp_path, byte_level(pre)))
  backend = json.loads((tmp_path / "tokenizer.json").read_text())
  assert backend["model"]["ignore_merges"] == (pre == "llama-bpe")
  text = "12345 the\n\n x's"
  assert t.decode(t.encode(text)) == text
  _, ends = t.spans("1234567")
  assert {most, 2 * most} <= set(ends)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(model="t5"), "unknown tokenizer of x.gguf, 't5'"),
    (dict(scores=[0.0]), "x.gguf: its tokenizer is damaged"),
    (dict(tokens=["a"] * len(PIECES)), "a token is there twice"),
    (dict(bos_token_id=10**9), "x.gguf: its tokenizer is damaged"),
    (dict(model="gpt2", pre="chameleon", merges=[]), "tokenizer.ggml.pre of a GGUF file"),
    (dict(model="gpt2", pre="qwen2", merges=["x y"]), "x.gguf: its tokenizer is damaged"),
  ],
)
def test_what_cannot_be_read_is_one_line(changes, message):
  with pytest.raises(UserError, match=message) as error:
    tokenizer_files(SENTENCEPIECE | changes, "x.gguf")
  assert "\n" not in str(error.value)


def test_a_file_without_a_vocabulary_has_no_tokenizer():
  assert tokenizer_files({}, "x.gguf") == {}


def llama(path):
  """A LLaMA of one layer with that vocabulary."""
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_block_count(1)
  writer.add_embedding_length(WIDTH)
  writer.add_feed_forward_length(32)
  writer.add_head_count(HEADS)
  writer.add_head_count_kv(KV_HEADS)
  writer.add_layer_norm_rms_eps(1e-6)
  writer.add_tokenizer_model("llama")
  writer.add_token_list(SENTENCEPIECE["tokens"])
  writer.add_token_scores(SENTENCEPIECE["scores"])
  writer.add_token_types(SENTENCEPIECE["token_type"])
  writer.add_bos_token_id(2)
  writer.add_eos_token_id(1)
  writer.add_add_space_prefix(False)
  shapes = {
    "token_embd": (len(PIECES), WIDTH),
    "output": (len(PIECES), WIDTH),
    "output_norm": (WIDTH,),
    "blk.0.attn_norm": (WIDTH,),
    "blk.0.attn_q": (HEADS * HEAD_DIM, WIDTH),
    "blk.0.attn_k": (KV_HEADS * HEAD_DIM, WIDTH),
    "blk.0.attn_v": (KV_HEADS * HEAD_DIM, WIDTH),
    "blk.0.attn_output": (WIDTH, HEADS * HEAD_DIM),
    "blk.0.ffn_norm": (WIDTH,),
    "blk.0.ffn_gate": (32, WIDTH),
    "blk.0.ffn_up": (32, WIDTH),
    "blk.0.ffn_down": (WIDTH, 32),
  }
  rng = np.random.default_rng(0)
  for name, shape in shapes.items():
    writer.add_tensor(f"{name}.weight", rng.standard_normal(shape, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def test_an_import_brings_its_tokenizer_and_takes_new_tokens(tmp_path, capsys):
  path, to, back = llama(tmp_path / "x.gguf"), tmp_path / "ours", tmp_path / "back"
  run = lambda *args: import_weights.main(["gguf", *map(str, args)])
  assert run(path, "--to", to, "--add-tokens", 3) == 0
  size = len(PIECES)
  assert f"the last 3 of {size + 3} tokens are new" in capsys.readouterr().out
  weights = load_weights(to / import_weights.WEIGHTS)
  table, head = (np.asarray(weights[f"lm/{name}"]) for name in ("embedding", "head/kernel"))
  assert (table.shape, head.shape) == ((size + 3, WIDTH), (WIDTH, size + 3))
  np.testing.assert_allclose(table[size:], np.tile(table[:size].mean(0), (3, 1)), rtol=1e-5)
  np.testing.assert_allclose(head[:, -1], head[:, :size].mean(1), rtol=1e-4, atol=1e-6)
  assert json.loads((to / "config.json").read_text())["lm"]["vocab_size"] == size + 3
  assert load_tokenizer(str(to / "tokenizer")).vocab_size == size + 3  # <PAD> is the third
  assert export_weights.main([str(to), "--to", str(back)]) == 0
  config = json.loads((back / "config.json").read_text())
  assert (config["vocab_size"], config["bos_token_id"]) == (size, 2)
  assert (back / "tokenizer.json").read_bytes() == (to / "tokenizer/tokenizer.json").read_bytes()
  # A folder's tokenizer comes along as well; without the new rows, bits are as they were.
  assert import_weights.main(["hugging_face", str(back), "--to", str(tmp_path / "again")]) == 0
  again = load_weights(tmp_path / "again" / import_weights.WEIGHTS)
  np.testing.assert_array_equal(np.asarray(again["lm/embedding"]), table[:size])
  np.testing.assert_array_equal(np.asarray(again["lm/head/kernel"]), head[:, :size])
  assert (tmp_path / "again" / "tokenizer" / "tokenizer.json").exists()


def test_new_tokens_need_a_table(tmp_path, capsys):
  path = llama(tmp_path / "x.gguf")
  args = ["gguf", str(path), "--to", str(tmp_path / "ours"), "--add-tokens", "-1"]
  assert import_weights.main(args) == 2
  assert capsys.readouterr().err.startswith("error: --add-tokens: needs")
