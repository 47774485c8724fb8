"""Kernels are compiled in threads while the compiler traces; no GPU and no Triton are needed."""

from types import SimpleNamespace
from typing import Any

import torch

from paramgolf.model.kernels.launch import compilations, launch, operator


class Kernel:
    """Notes what it is compiled for, and how often it is launched."""

    def __init__(self) -> None:
        self.compiled: list[tuple[Any, ...]] = []
        self.launched = 0

    def warmup(self, *args: Any, **_: Any) -> SimpleNamespace:
        self.compiled.append(args)
        return SimpleNamespace(run=None)

    def __getitem__(self, _grid: Any) -> Any:
        def run(*_: Any) -> None:
            self.launched += 1

        return run


def test_a_kernel_of_symbols_is_compiled_for_what_they_stand_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    kernel = Kernel()

    @operator("launched_by_a_test")
    def count_rows(x: torch.Tensor) -> torch.Tensor:
        launch(kernel, (1,), x, x.shape[0], 0.5)
        return torch.empty_like(x)

    compiled = torch.compile(lambda x: count_rows(x + 1), backend="aot_eager", dynamic=True)
    compiled(torch.zeros(48, 3))
    assert compilations().pending == 0
    assert kernel.compiled == [(torch.float32, 48, 0.5)]
    compiled(torch.zeros(96, 3))
    assert (len(kernel.compiled), kernel.launched) == (1, 2)
