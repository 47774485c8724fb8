"""Entropy coders, the model.bin container, dequantization: bytes in, bytes out."""
