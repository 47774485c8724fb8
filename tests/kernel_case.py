"""Triton kernels compiled for a Hopper GPU, on a machine without one."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

# of tests that compile: Triton's interpreter runs what its compiler refuses
compiles = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available(),
    reason="interpreted kernels are not compiled, and a GPU compiles them anyway",
)
SHARED_MEMORY = 227 * 1024  # that a kernel can have there


class Hopper:
    """What Triton asks of a driver before it compiles."""

    get_current_device = get_current_stream = lambda *_: 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def compile_launches(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Let launches compile, and run nothing; return the names of the kernels, as they come."""
    triton = pytest.importorskip("triton", reason="needs Triton")
    run, names = triton.JITFunction.run, set()

    def compile_it(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        made = run(kernel, *args, grid=grid, warmup=True, **options)
        assert "cubin" in made.asm
        assert made.metadata.shared <= SHARED_MEMORY
        names.add(kernel.fn.__name__)

    monkeypatch.setattr(triton.JITFunction, "run", compile_it)
    triton.runtime.driver.set_active(Hopper())
    return names
