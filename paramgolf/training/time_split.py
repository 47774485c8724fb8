"""Where the time of a training step goes, by kind of kernel."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile

# the first kind whose word is in a kernel's name; the rest is elementwise
KINDS = {
    "communication": ("nccl",),
    "attention": ("flash", "fmha", "attention"),
    "loss": ("_losses", "nll", "log_softmax"),
    "gemm": ("nvjet", "gemm", "cutlass", "splitk", "_product"),
}
REPEATS = 3


def kind_of(kernel: str) -> str:
    """Return the kind of a kernel by its name."""
    name = kernel.lower()
    found = (kind for kind, words in KINDS.items() if any(word in name for word in words))
    return next(found, "elementwise")


def time_split(
    passes: Callable[[], object], optimizer: Callable[[], object]
) -> dict[str, float] | None:
    """Return milliseconds of a step on a GPU by kind, and the gaps between kernels; None on a CPU.

    `passes` runs forward and backward of a whole step, `optimizer` what follows.
    """
    if not torch.cuda.is_available():
        return None
    split = dict.fromkeys([*KINDS, "elementwise", "optimiser", "gaps"], 0.0)
    for name, milliseconds in _kernels(passes):
        split[kind_of(name)] += milliseconds
    for name, milliseconds in _kernels(optimizer):
        split["communication" if kind_of(name) == "communication" else "optimiser"] += milliseconds
    wall = _wall_ms(lambda: (passes(), optimizer()))
    split["gaps"] = max(0.0, wall - sum(split.values()))
    return split


def _kernels(work: Callable[[], object]) -> Iterable[tuple[str, float]]:
    """Yield name and milliseconds of each kernel of `work`."""
    torch.cuda.synchronize()
    # one cycle; events kept over cycles are what keeps PyTorch 2.11 from warning of their loss
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as record:
        work()
        torch.cuda.synchronize()
    for event in record.key_averages():
        if event.self_device_time_total > 0:
            yield event.key, event.self_device_time_total / 1000


def _wall_ms(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(REPEATS):
        work()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start) / REPEATS
