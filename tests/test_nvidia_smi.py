"""What NVIDIA's driver says, from a stand-in for its tool."""

from __future__ import annotations

import dataclasses
import os

from paramgolf.nvidia_smi import gpus


def test_gpus_are_read_as_the_driver_tells_them(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        "echo '0, NVIDIA H100, 1024, 81559, 120.51, 97'\n"
        "echo 'No devices were found'\n"
        "echo '1, Old, 5, 10, [N/A], [N/A]'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    first, second = gpus()
    assert dataclasses.astuple(first) == ("0", "NVIDIA H100", 1024, 81559, 120.51, 97)
    assert (second.watts, second.busy_percent) == (None, None)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert gpus() == []
