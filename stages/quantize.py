"""Quantize the trained weights to integers and scales: `python stages/quantize.py`."""

from paramgolf.program import exit_on_fault, start_program

start_program()  # before torch and numpy are loaded

import torch

from paramgolf.gpu_slots import take_gpus
from paramgolf.mirror import mirrored
from paramgolf.params import load_params
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.quantize import quantize
from paramgolf.runtime import resolve_device
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.stage_runtime import metered


def main() -> None:
    """Read params.yaml, quantize, write artifacts/quantize and the metrics."""
    runtime = load_params(RuntimeConfig, "runtime")
    take_gpus(runtime, processes=1)
    device = torch.device(resolve_device(runtime))
    with mirrored("quantize"), metered("quantize", runtime):
        quantize(load_params(QuantizeConfig, "quantize"), device)


if __name__ == "__main__":
    with exit_on_fault():
        main()
