"""Fused GPU kernels (Triton) of what paramgolf.model.operations defines.

All but the MLP are bound by memory: they save passes over activations of B T d elements, not
arithmetic. Each module's docstring gives the formula and derives its gradient. In a kernel `at` is
the offsets of a tile's elements, `live` masks those beyond the tensor's end, and arguments in
capitals are fixed when the kernel is compiled. Arithmetic is float32; tensors come in the compute
dtype and are rounded to it once, when they are written.
"""
