import json
import pickle
import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from medflax.data.documents import END_OF_CHUNK, IMAGE_TOKEN, Prompt, episode_document
from medflax.data.encode import encode_document
from medflax.data.phantoms import INVENTED_WORDS, Phantoms
from medflax.data.tokenizer import SHIPPED, SHIPPED_SPECIALS, load_tokenizer
from medflax.tools.build_tokenizer import VOCAB_SIZE, build
from medflax.utils import UserError

TOKENIZER = load_tokenizer()
TEXT = st.text() | st.lists(st.sampled_from([*SHIPPED_SPECIALS, " ", "a"])).map("".join)


def test_special_ids_never_change():
  t = TOKENIZER
  assert (t.pad_id, t.bos_id, t.eos_id) == (0, 1, 2)
  assert [t.special_id(name) for name in (IMAGE_TOKEN, END_OF_CHUNK)] == [3, 4]
  assert t.vocab_size == VOCAB_SIZE


@given(TEXT)
def test_text_survives_the_round_trip_and_yields_no_special_token(text):
  ids = TOKENIZER.encode(text)
  assert TOKENIZER.decode(ids) == text
  assert min(ids, default=5) >= 5


@given(TEXT)
def test_spans_end_where_their_tokens_end(text):
  ids, ends = TOKENIZER.spans(text)
  assert list(ids) == TOKENIZER.encode(text)
  assert list(ends) == sorted(ends)
  assert max(ends, default=0) == len(text)


def test_decode_drops_special_tokens():
  ids = TOKENIZER.encode(" left lung")
  assert TOKENIZER.decode([1, 3, *ids, 4, 0]) == " left lung"


def test_prompt_pieces_are_single_tokens():
  invented = [f" {word}" for word in INVENTED_WORDS]
  words = (" or", " yes", " no", " CT", " left", " Which", " word", " finding")
  for piece in ("Question:", " Answer:", "?", *words, *invented):
    assert len(TOKENIZER.encode(piece)) == 1, piece


def test_a_binding_episode_of_eight_shots_is_short():
  episode = Phantoms((8, 8), (2, 8, 8)).episodes("binding", "train", 8)[0]
  document = episode_document(episode, Prompt())
  assert len(encode_document(document, TOKENIZER, media_rule="prev_image")["tokens"]) == 73


def test_rebuilding_gives_the_shipped_file():
  assert json.loads(build().to_str()) == json.loads(SHIPPED.read_text())


def test_command_writes_the_file(tmp_path):
  path = tmp_path / "tokenizer.json"
  command = [sys.executable, "-m", "medflax.tools.build_tokenizer", "--to", str(path)]
  subprocess.run(command, check=True, capture_output=True)
  assert path.read_bytes() == SHIPPED.read_bytes()


def test_pickled_tokenizer_encodes_alike():
  copy = pickle.loads(pickle.dumps(TOKENIZER))
  assert copy.encode("an <image> of") == TOKENIZER.encode("an <image> of")


def test_unknown_special_token_is_named():
  with pytest.raises(UserError, match="no special token '<img>'; did you mean '<image>'"):
    TOKENIZER.special_id("<img>")


def llama_like_folder(path, **special_tokens):
  """A byte-level tokenizer of as many ids as LLaMA's, with its <s> and </s>."""
  symbols = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
  symbols += [f"unused{i}" for i in range(32000 - len(symbols))]
  vocab = {symbol: i for i, symbol in enumerate(symbols)}
  backend = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
  backend.add_special_tokens(["<unk>", "<s>", "</s>"])
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.enable_truncation(4)
  path.mkdir()
  backend.save(str(path / "tokenizer.json"))
  names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **special_tokens}
  config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
  (path / "tokenizer_config.json").write_text(json.dumps(config))
  return str(path)


def test_openflamingo_ids_are_added_to_a_tokenizer_of_llama_size(tmp_path):
  t = load_tokenizer(llama_like_folder(tmp_path / "llama"))
  added = (END_OF_CHUNK, IMAGE_TOKEN)
  assert [*map(t.special_id, added), t.pad_id] == [32000, 32001, 32002]
  assert (t.bos_id, t.eos_id, t.vocab_size) == (1, 2, 32003)
  text = f"where is <s> the{IMAGE_TOKEN}{END_OF_CHUNK} lesion?"
  assert t.decode(t.encode(text)) == text
  assert not {1, 2, 32000, 32001, 32002} & set(t.encode(text))
  assert pickle.loads(pickle.dumps(t)).encode(text) == t.encode(text)


def test_a_folders_tokenizer_gets_the_special_tokens_that_are_asked_for(tmp_path):
  folder = llama_like_folder(tmp_path / "llama")
  t = load_tokenizer(folder, add=("<image>", "</image>", "<s>"), pad="<unk>")
  ids = [t.special_id(token) for token in ("<image>", "</image>", "<s>", "<unk>")]
  assert ids == [32000, 32001, 1, t.pad_id]
  assert t.vocab_size == 32002
  assert pickle.loads(pickle.dumps(t)).special_id("</image>") == 32001
  with pytest.raises(UserError, match=r"no special token .<\|endofchunk\|>"):
    t.special_id(END_OF_CHUNK)


def test_an_existing_padding_token_is_kept(tmp_path):
  t = load_tokenizer(llama_like_folder(tmp_path / "llama", pad_token="</s>"))
  assert (t.pad_id, t.vocab_size) == (2, 32002)


@pytest.mark.parametrize("content", [None, {}, {"tokenizer.json": "{", "config.json": "{}"}])
def test_missing_or_broken_folder_is_one_line(tmp_path, content):
  path = tmp_path / "tokenizer"
  if content is not None:
    path.mkdir()
    for name, text in content.items():
      (path / name).write_text(text)
  with pytest.raises(UserError, match=r"^tokenizer\.path: ") as error:
    load_tokenizer(str(path))
  assert str(path) in str(error.value)
  assert "\n" not in str(error.value)
