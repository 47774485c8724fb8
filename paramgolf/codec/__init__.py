"""Entropy coders, the model.bin container, the self-extracting code: bytes in, bytes out."""
