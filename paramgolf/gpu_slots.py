"""GPUs as slots: concurrent runs of one user on one machine take different ones.

DVC's queue starts several experiments but gives them no device. So each stage takes its GPUs
before it touches CUDA: a GPU is a file that the process locks (flock), and Linux drops the lock
when the process ends, however it ends.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import runpy
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from paramgolf.clock import leave_out
from paramgolf.errors import ParamGolfError
from paramgolf.nvml import gpu_count
from paramgolf.process import is_rank
from paramgolf.progress import say
from paramgolf.runtime_config import RuntimeConfig

VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 1.0


def take_gpus(config: RuntimeConfig) -> list[str]:
    """Wait for as many GPUs as the stage starts processes, let it see no other, and return them.

    runtime.processes 0 stands for all visible GPUs. Nothing is taken on a CPU, nor by a process of
    a group: its launcher holds the GPUs. The time of waiting counts against no budget.
    """
    no_choice = config.device == "cpu" or is_rank()
    devices = [] if no_choice else visible_gpus()
    if not devices:
        return []
    before = time.monotonic()
    taken = take(devices, config.processes or len(devices), slot_folder())
    leave_out(time.monotonic() - before)
    os.environ[VISIBLE] = ",".join(taken)
    return taken


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, each as CUDA_VISIBLE_DEVICES would name it.

    An index counts the machine's GPUs, so all runs must name them in one way: by index or by UUID.
    CUDA, which would read the variable for good, is not started.
    """
    value = os.environ.get(VISIBLE)
    if value == "" or not torch_has_cuda():
        return []
    names = None if value is None else [name.strip() for name in value.split(",")]
    count = _count(names)
    return [str(i) for i in range(count)] if names is None else names[:count]


def _count(names: Sequence[str] | None) -> int:
    """Return how many GPUs CUDA would see of those named, up to the first that is not there.

    NVML tells where they are named by index; what else there is, and no NVML, is left to torch.
    """
    total = gpu_count()
    if total is not None and names is None:
        return total
    if total is not None and names and _are_indices(names):
        return next((i for i, name in enumerate(names) if int(name) >= total), len(names))
    import torch  # takes a second or more to load

    return torch.cuda.device_count()


def _are_indices(names: Sequence[str]) -> bool:
    return all(name.isdecimal() for name in names) and len({*names}) == len(names)


def torch_has_cuda() -> bool:
    """Tell whether torch is built for CUDA, without loading it."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    version = Path(str(spec.origin)).with_name("version.py")
    return runpy.run_path(str(version))["cuda"] is not None


def slot_folder() -> Path:
    """Return the folder of the lock files, of this user and machine."""
    return Path(tempfile.gettempdir()) / f"paramgolf-gpus-{os.getuid()}"


def take(devices: Sequence[str], count: int, folder: Path) -> list[str]:
    """Lock `count` of `devices` for as long as this process lives, and return them.

    It waits where too few are free, in turn: one process at a time gathers GPUs, so that a run
    that needs many is not overtaken for ever, and no two runs wait for each other's.
    """
    if count > len(devices):
        raise ParamGolfError(
            f"the run wants {count} GPUs, one per process, but {len(devices)} can be seen",
            found=f"GPUs {', '.join(devices)}",
            fix=f"set runtime.processes to at most {len(devices)}, or 0 for all; see {VISIBLE}",
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    need = f"{count} of {len(devices)} GPUs"
    turn = FileLock(folder / "turn.lock")
    waited = not _lock(turn)
    if waited:
        say(f"gpu: waiting for {need}, behind another run that waits")
        turn.acquire(poll_interval=POLL_SECONDS)
    try:
        slots = _free(devices, count, folder)
        while len(slots) < count:
            if not waited:
                say(f"gpu: waiting for {need}; {len(slots)} free")
                waited = True
            time.sleep(POLL_SECONDS)
            rest = [device for device in devices if device not in slots]
            slots |= _free(rest, count - len(slots), folder)
    finally:
        turn.release()
    for slot in slots.values():
        atexit.register(slot.release)  # which keeps the lock: it would go with its object
    chosen = [device for device in devices if device in slots]
    if waited:
        say(f"gpu: took {', '.join(chosen)}")
    return chosen


def _free(devices: Iterable[str], most: int, folder: Path) -> dict[str, FileLock]:
    """Lock up to `most` of the devices that nobody holds."""
    slots: dict[str, FileLock] = {}
    for device in devices:
        if len(slots) == most:
            break
        slot = FileLock(folder / f"{device.replace('/', '_')}.lock")
        if _lock(slot):
            slots[device] = slot
    return slots


def _lock(lock: FileLock) -> bool:
    """Take a lock if nobody holds it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True
