"""Generation: media features, the compiled decoding loop, answers from tokens."""
