"""Fused GPU kernels (Triton) of the network's operations; paramgolf.model.operations says what they compute."""
