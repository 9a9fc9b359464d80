from hypothesis import given, settings
from hypothesis import strategies as st

from medflax.data.builders.interleave import Piece, segments

PIECES = st.lists(
  st.builds(
    Piece,
    st.text(st.sampled_from("ab <image>"), max_size=30),
    st.lists(st.sampled_from(["x.png", "y.png"]), max_size=4).map(tuple),
  ),
  max_size=12,
)


@settings(max_examples=50, deadline=None)
@given(PIECES, st.integers(1, 3), st.integers(1, 8))
def test_documents_keep_to_their_limits_and_their_images(pieces, max_images, max_words):
  found = list(segments(pieces, max_images=max_images, max_words=max_words, max_pieces=4))
  for segment in found:
    assert 1 <= len(segment.images) <= max_images
    assert segment.text.count("<image>") == len(segment.images)
  kept = [path for segment in found for path in segment.images]
  assert kept == [path for piece in pieces for path in piece.images[:max_images]]


def test_texts_are_cut_between_pieces():
  pieces = [
    Piece("one"),
    Piece("two", ("a",)),
    Piece("three"),
    Piece("four", ("b",)),
    Piece("five"),
  ]
  texts = [s.text for s in segments(pieces, max_images=1, max_words=100)]
  assert texts == ["one <image>two three", "<image>four five"]
  assert [s.text for s in segments(pieces, max_images=9, max_words=2)] == [
    "one <image>two",
    "three <image>four",
  ]
  assert list(segments([Piece("only text")], max_images=1, max_words=9)) == []
