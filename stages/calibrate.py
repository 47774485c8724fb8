"""Gather the Hessians of each matrix's input: `python stages/calibrate.py` (a process per GPU)."""

from paramgolf.process import start_process

start_process()  # before torch and numpy are loaded

from paramgolf.errors import exit_on_error
from paramgolf.gpu_slots import take_gpus
from paramgolf.params import load_params
from paramgolf.quant.calibrate import calibrate
from paramgolf.quant.config import CalibrateConfig
from paramgolf.runtime import launch, processes
from paramgolf.runtime_config import RuntimeConfig


def main() -> None:
    """Read params.yaml, calibrate, write artifacts/calibrate and the metrics."""
    machine = load_params(RuntimeConfig, "runtime")
    take_gpus(machine)
    launch(machine)
    with processes(machine) as runtime:
        calibrate(load_params(CalibrateConfig, "calibrate"), runtime)


if __name__ == "__main__":
    with exit_on_error():
        main()
