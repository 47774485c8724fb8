"""Pack the quantised model and its code, and count every byte: `python stages/package.py`."""

from paramgolf.codec.config import PackageConfig
from paramgolf.codec.package import package
from paramgolf.errors import exit_on_error
from paramgolf.params import load
from paramgolf.scoring.config import AdaptConfig, SlidingConfig
from paramgolf.training.config import TrainConfig


def main() -> None:
    """Read params.yaml, pack, write artifacts/package and artifacts/metrics/package.json."""
    sections = load(PackageConfig, "package"), load(TrainConfig, "train")
    package(*sections, load(SlidingConfig, "eval_sliding"), load(AdaptConfig, "eval_ttt"))


if __name__ == "__main__":
    with exit_on_error():
        main()
