"""Quantize the trained weights to integers and scales: `python stages/quantize.py`."""

from paramgolf.program import exit_on_fault, start_stage

start_stage()  # before torch and numpy are loaded

from paramgolf.params import load_params
from paramgolf.quant.config import QuantizeConfig
from paramgolf.stage_runtime import launch_stage, stage_processes

if __name__ == "__main__":
    # a fit solves all families again and again; one solve takes no longer than to start others
    launch_stage("quantize", alone=load_params(QuantizeConfig, "quantize").fit_bytes is None)

from paramgolf.quant.quantize import quantize


def main() -> None:
    """Read params.yaml, quantize, write artifacts/quantize and the metrics."""
    with stage_processes("quantize") as runtime:
        quantize(load_params(QuantizeConfig, "quantize"), runtime)


if __name__ == "__main__":
    with exit_on_fault():
        main()
