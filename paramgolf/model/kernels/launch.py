"""Triton kernels as PyTorch's operators, compiled in threads while its compiler traces.

A start needs some thirty kernels. Triton would compile each as it is first launched, one after the
other; here threads do while the graphs that launch them are traced and lowered, since most of its
passes release the interpreter's lock.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from paramgolf.model.torch_internals import has_data, traced_number

THREADS = 8


class Compilations:
    """Kernels that threads compile, until they are first launched."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS)
        self._begun: dict[Any, dict[str, Future[None]]] = defaultdict(dict)

    def begin(self, kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Begin to compile a kernel for such arguments, load it and build its launcher."""
        # of tensors their type, descriptors stay; a kernel is compiled anew for numbers of 1 and of
        # multiples of 16, and what a symbol stands for while it is traced is launched first
        args = tuple(traced_number(getattr(x, "dtype", x)) for x in args)
        device, key = torch.cuda.current_device(), f"{args} {options}"

        def compile_here() -> None:
            torch.cuda.set_device(device)
            _ = kernel.warmup(*args, grid=(1,), **options).run

        if key not in self._begun[kernel]:
            self._begun[kernel][key] = self._threads.submit(compile_here)

    def wait(self, kernel: Any) -> None:
        """Wait until nothing of a kernel is being compiled."""
        for future in self._begun.pop(kernel, {}).values():
            future.result()

    @property
    def pending(self) -> int:
        """The number of kernels that were begun and not launched yet."""
        return len(self._begun)


@functools.cache
def compilations() -> Compilations:
    """Return the one set of this process; operators have nowhere else to keep it."""
    return Compilations()


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as an operator that PyTorch's compiler does not look into.

    For shapes the compiler runs it on tensors without data; what launches kernels goes by `launch`.
    """

    def register(function: Callable[..., Any]) -> Any:
        made = torch.library.custom_op(f"paramgolf::{name}", function, mutates_args=())
        made.register_fake(function)
        return made

    return register


def launch(kernel: Any, grid: Any, *args: Any, **options: Any) -> None:
    """Launch a kernel, or begin to compile it where its first argument has no data."""
    if not has_data(getattr(args[0], "base", args[0])):  # a descriptor's tensor is its base
        compilations().begin(kernel, args, options)
        return
    compilations().wait(kernel)
    kernel[grid](*args, **options)


def processors(x: torch.Tensor) -> int:
    """Return how many multiprocessors the GPU of x has: the programs of a persistent kernel."""
    count: int = torch.cuda.get_device_properties(x.device).multi_processor_count
    return count
