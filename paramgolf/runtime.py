"""Where a stage runs: the device, the processes and their collectives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from paramgolf.errors import ParamGolfError
from paramgolf.process import GROUP_VARIABLE, is_rank, keep_freed_memory
from paramgolf.runtime_config import ProcessConfig

PATIENCE = timedelta(hours=1)  # of collectives: others compile, or one works alone; none is dead
KERNELS = Path(".cache/kernels")  # what was compiled for the GPU, for the next process


@dataclass(frozen=True, slots=True)
class Runtime:
    """The processes that share a stage's work; one process on one device is the ordinary case."""

    rank: int
    world: int
    device: torch.device
    compile: bool = False
    attention: str = "auto"
    kernels: str = "auto"
    deterministic: bool = False

    @property
    def is_main(self) -> bool:
        """Tell whether this process writes the files and the log."""
        return self.rank == 0

    @property
    def compute_dtype(self) -> torch.dtype:
        """bfloat16 on a GPU, float32 on a CPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all processes, in place, and return it."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, value: float) -> float:
        """Return the main process's `value` on all processes."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)  # by gloo: the GPU need not be waited for
        dist.broadcast(shared, src=0)
        return float(shared)

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every process, which waits for all."""
        found = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(found, value)  # by gloo: it lies in the host's memory
        return found

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


def share(count: int, runtime: Runtime) -> range:
    """Return this process's contiguous part of `count` items; the parts cover all items once."""
    return range(count * runtime.rank // runtime.world, count * (runtime.rank + 1) // runtime.world)


def resolve_device(config: ProcessConfig) -> str:
    """Return `cpu` or `cuda`; asking for an absent GPU is an error."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ParamGolfError(
            "runtime.device is cuda, but torch sees no GPU",
            fix="set runtime.device to auto or cpu, or install a CUDA build of torch",
        )
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def _prepare_gpu(device: torch.device) -> None:
    """Make `device` this process's GPU, and let compilers keep what they make in the project.

    They read the variables as they compile for the first time.
    """
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(KERNELS.resolve() / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(KERNELS.resolve() / "triton"))


def _fix_orders() -> None:
    """Make each operation of PyTorch add in a fixed order; those that cannot raise RuntimeError."""
    # read as cuBLAS starts; this is the size that PyTorch has on Hopper anyway
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # it would find reads of what was never written, and costs a pass over each new tensor
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextlib.contextmanager
def processes(config: ProcessConfig) -> Iterator[Runtime]:
    """Join the group of processes (one, or those of a launcher) for the length of the block."""
    kind = resolve_device(config)
    rank, local, world = 0, 0, 1
    if is_rank():  # or the others are left over from another group
        names = "RANK", "LOCAL_RANK", "WORLD_SIZE"
        rank, local, world = (int(os.environ[name]) for name in names)
    device = torch.device(kind, local) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        _prepare_gpu(device)
    else:
        keep_freed_memory()
    if config.deterministic:
        _fix_orders()
    compiled = config.compile == "on" or (config.compile == "auto" and kind == "cuda")
    runtime = Runtime(
        rank, world, device, compiled, config.attention, config.kernels, config.deterministic
    )
    if world == 1:
        yield runtime
        return
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    folder = os.environ.get(GROUP_VARIABLE)  # of our launcher; torchrun has an address and a port
    dist.init_process_group(
        backend,
        f"file://{folder}/store" if folder else None,
        PATIENCE,
        world,
        rank,
        device_id=device if kind == "cuda" else None,
    )
    yield runtime
    # not where it failed: the others would complain of a lost one before they are ended
    dist.destroy_process_group()


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to `device`, from memory that the host need not wait for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def start_copy(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    """Begin to copy `tensor` to the host; the function returned waits for that copy alone.

    Work queued on the device in between goes on. float64.
    """
    host = tensor.to("cpu", non_blocking=True)
    copied = torch.cuda.Event() if tensor.is_cuda else None
    if copied is not None:
        copied.record()

    def wait() -> np.ndarray:
        if copied is not None:
            copied.synchronize()
        return host.double().numpy()

    return wait


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done its work, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
