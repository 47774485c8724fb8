"""Gather the Hessians of each matrix's input: `python stages/calibrate.py` (a process per GPU)."""

from paramgolf.program import exit_on_fault, start_stage

start_stage()  # before torch and numpy are loaded

from paramgolf.stage_runtime import launch_stage, stage_processes

if __name__ == "__main__":
    launch_stage("calibrate")

from paramgolf.params import load_params
from paramgolf.quant.calibrate import calibrate
from paramgolf.quant.config import CalibrateConfig


def main() -> None:
    """Read params.yaml, calibrate, write artifacts/calibrate and the metrics."""
    with stage_processes("calibrate") as runtime:
        calibrate(load_params(CalibrateConfig, "calibrate"), runtime)


if __name__ == "__main__":
    with exit_on_fault():
        main()
