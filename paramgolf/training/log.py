"""The training log: one JSON object a line, the environment first."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from paramgolf.files import write_text
from paramgolf.progress import say
from paramgolf.runtime import Runtime, device_name


def environment(runtime: Runtime) -> dict[str, Any]:
    """Return what a reader needs to judge whether two runs compare."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": device_name(runtime.device),
        "world_size": runtime.world,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }


class Log:
    """Appends to a JSONL file on the main process; keeps the lines, for a checkpoint to restore.

    The file is a new one, whatever lay there: after `dvc checkout` that is a link to DVC's cache.
    """

    def __init__(self, path: Path, *, show: bool) -> None:
        self._path = path
        self._show = show
        self.lines: list[str] = []

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; validations are shown too."""
        if not self._show:
            return
        line = json.dumps(record)
        if not self.lines:
            self.restore([line])
        else:
            self.lines.append(line)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        if record["event"] == "validation":
            scored = f"val_bpb={record['val_bpb']:.4f} of {record['tokens_scored']:,} tokens"
            say(f"train: step={record['step']} {scored}")

    def restore(self, lines: list[str]) -> None:
        """Begin the file again with the lines of a checkpoint."""
        self.lines = list(lines)
        if self._show:
            write_text(self._path, "".join(line + "\n" for line in lines))
