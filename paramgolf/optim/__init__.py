"""Muon and its orthogonalization, and what late quantization-aware training does to weights."""
