"""Text to tokens: vocabularies, the case transform, the bytes of tokens, which can follow which."""
