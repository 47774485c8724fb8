"""Train the network: `python stages/train.py` (one process per GPU, started as needed)."""

from paramgolf.process import start_process

start_process()  # before torch and numpy are loaded

from paramgolf.errors import exit_on_error
from paramgolf.gpu_slots import take_gpus
from paramgolf.model.config import ModelConfig
from paramgolf.params import load_params
from paramgolf.runtime import launch, processes
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.training.config import TrainConfig
from paramgolf.training.run import train
from paramgolf.training.time_split import time_split


def main() -> None:
    """Read params.yaml, train, write artifacts/train and artifacts/metrics/train.json."""
    machine = load_params(RuntimeConfig, "runtime")
    take_gpus(machine)
    launch(machine)
    with processes(machine) as runtime:
        model, config = load_params(ModelConfig, "model"), load_params(TrainConfig, "train")
        train(model, config, runtime, time_split)


if __name__ == "__main__":
    with exit_on_error():
        main()
