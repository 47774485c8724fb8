"""Triton kernels of the quantizer; each has a plain form elsewhere."""
