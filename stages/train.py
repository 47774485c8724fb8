"""Train the network: `python stages/train.py` (one process per GPU, started as needed)."""

from paramgolf.program import exit_on_fault, start_stage

start_stage()  # before torch and numpy are loaded

from paramgolf.stage_runtime import launch_stage, stage_processes

if __name__ == "__main__":
    launch_stage("train")

from paramgolf.model.config import ModelConfig
from paramgolf.params import load_params
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.training.config import TrainConfig
from paramgolf.training.live import LiveLog
from paramgolf.training.log import Log
from paramgolf.training.run import train
from paramgolf.training.time_split import time_split


def main() -> None:
    """Read params.yaml, train, write artifacts/train and artifacts/metrics/train.json."""
    with stage_processes("train") as runtime:
        model, config = load_params(ModelConfig, "model"), load_params(TrainConfig, "train")
        log = LiveLog if load_params(RuntimeConfig, "runtime").live_plots else Log
        train(model, config, runtime, time_split, log)


if __name__ == "__main__":
    with exit_on_fault():
        main()
