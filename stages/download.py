"""Fetch or make the text, or fetch published shards: `python stages/download.py`."""

from paramgolf.program import exit_on_fault, start_stage

start_stage()  # before torch and numpy are loaded

from paramgolf.data.config import DataConfig
from paramgolf.data.source.download import download
from paramgolf.params import load_params


def main() -> None:
    """Read params.yaml, write data/raw."""
    download(load_params(DataConfig, "data"))


if __name__ == "__main__":
    with exit_on_fault():
        main()
