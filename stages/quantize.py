"""Quantize the trained weights to integers and scales: `python stages/quantize.py`."""

from paramgolf.program import exit_on_fault, start_program

start_program()  # before torch and numpy are loaded

from paramgolf.params import load_params
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.quantize import quantize
from paramgolf.stage_runtime import stage_processes


def main() -> None:
    """Read params.yaml, quantize, write artifacts/quantize and the metrics."""
    config = load_params(QuantizeConfig, "quantize")
    # a fit solves all families again and again; one solve takes no longer than to start others
    with stage_processes("quantize", alone=config.fit_bytes is None) as runtime:
        quantize(config, runtime)


if __name__ == "__main__":
    with exit_on_fault():
        main()
