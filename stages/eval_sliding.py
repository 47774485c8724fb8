"""Score the packed model by a sliding window: `python stages/eval_sliding.py`."""

from paramgolf.process import start_process

start_process()  # before torch and numpy are loaded

from paramgolf.data.token_set import TOKENS_PATH
from paramgolf.errors import exit_on_error
from paramgolf.gpu_slots import take_gpus
from paramgolf.params import load_params
from paramgolf.runtime import launch, processes
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.scoring.config import SlidingConfig
from paramgolf.scoring.evaluation import score_sliding
from paramgolf.scoring.stage import PACKAGE_PATH, StageSession
from paramgolf.verify.config import VerifyConfig


def main() -> None:
    """Read params.yaml, score, write artifacts/eval_sliding and its metrics."""
    machine = load_params(RuntimeConfig, "runtime")
    config = load_params(SlidingConfig, "eval_sliding")
    take_gpus(machine)
    launch(machine)
    with processes(machine) as runtime:
        limits = load_params(VerifyConfig, "verify")
        session = StageSession("eval_sliding", config, runtime, limit_seconds=limits.eval_seconds)
        session.finish(score_sliding(PACKAGE_PATH, TOKENS_PATH, config, runtime, session))


if __name__ == "__main__":
    with exit_on_error():
        main()
