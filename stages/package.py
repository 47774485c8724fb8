"""Pack the quantized model and its code, and count every byte: `python stages/package.py`."""

from paramgolf.program import exit_on_fault, start_stage

start_stage()  # before torch and numpy are loaded

from paramgolf.codec.config import PackageConfig
from paramgolf.mirror import mirrored
from paramgolf.packing.package import package
from paramgolf.params import load_params
from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.training.config import TrainConfig


def main() -> None:
    """Read params.yaml, pack, write artifacts/package and artifacts/metrics/package.json."""
    sections = load_params(PackageConfig, "package"), load_params(TrainConfig, "train")
    evaluations = load_params(SlidingConfig, "eval_sliding"), load_params(TttConfig, "eval_ttt")
    with mirrored("package"):
        package(*sections, *evaluations)


if __name__ == "__main__":
    with exit_on_fault():
        main()
