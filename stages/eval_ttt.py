"""Score the packed model while it learns from what is scored: `python stages/eval_ttt.py`."""

from paramgolf.program import exit_on_fault, start_stage

start_stage()  # before torch and numpy are loaded

from paramgolf.stage_runtime import launch_stage, stage_processes

if __name__ == "__main__":
    launch_stage("eval_ttt")

from paramgolf.data.token_set import TOKENS_PATH
from paramgolf.params import load_params
from paramgolf.scoring.config import TttConfig
from paramgolf.scoring.evaluation import score_adaptive
from paramgolf.scoring.stage import PACKAGE_PATH, StageSession
from paramgolf.verify.config import VerifyConfig


def main() -> None:
    """Read params.yaml, score and adapt, write artifacts/eval_ttt and its metrics."""
    config = load_params(TttConfig, "eval_ttt")
    limits = load_params(VerifyConfig, "verify")
    with stage_processes("eval_ttt") as runtime:
        session = StageSession("eval_ttt", config, runtime, limit_seconds=limits.eval_seconds)
        session.finish(score_adaptive(PACKAGE_PATH, TOKENS_PATH, config, session))


if __name__ == "__main__":
    with exit_on_fault():
        main()
