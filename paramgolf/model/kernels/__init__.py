"""Fused GPU kernels (Triton) of what paramgolf.model.operations defines."""
