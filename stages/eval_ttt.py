"""Score the packed model while it learns from what is scored: `python stages/eval_ttt.py`."""

from paramgolf.process import start_process

start_process()  # before torch and numpy are loaded

from paramgolf.data.token_set import TOKENS_PATH
from paramgolf.errors import exit_on_error
from paramgolf.gpu_slots import take_gpus
from paramgolf.params import load_params
from paramgolf.runtime import launch, processes
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.scoring.config import TttConfig
from paramgolf.scoring.evaluation import score_adaptive
from paramgolf.scoring.stage import PACKAGE_PATH, StageSession
from paramgolf.verify.config import VerifyConfig


def main() -> None:
    """Read params.yaml, score and adapt, write artifacts/eval_ttt and its metrics."""
    machine = load_params(RuntimeConfig, "runtime")
    config = load_params(TttConfig, "eval_ttt")
    take_gpus(machine)
    launch(machine)
    with processes(machine) as runtime:
        limits = load_params(VerifyConfig, "verify")
        session = StageSession("eval_ttt", config, runtime, limit_seconds=limits.eval_seconds)
        session.finish(score_adaptive(PACKAGE_PATH, TOKENS_PATH, config, runtime, session))


if __name__ == "__main__":
    with exit_on_error():
        main()
