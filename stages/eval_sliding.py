"""Score the packed model by a sliding window: `python stages/eval_sliding.py`."""

from paramgolf.program import exit_on_fault, start_stage

start_stage()  # before torch and numpy are loaded

from paramgolf.data.token_set import TOKENS_PATH
from paramgolf.params import load_params
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.scoring.alone import sooner_alone
from paramgolf.scoring.config import SlidingConfig
from paramgolf.stage_runtime import launch_stage, stage_processes

if __name__ == "__main__":
    machine = load_params(RuntimeConfig, "runtime")
    alone = sooner_alone(load_params(SlidingConfig, "eval_sliding"), machine, TOKENS_PATH)
    launch_stage("eval_sliding", alone=alone)

from paramgolf.scoring.evaluation import score_sliding
from paramgolf.scoring.stage import PACKAGE_PATH, StageSession
from paramgolf.verify.config import VerifyConfig


def main() -> None:
    """Read params.yaml, score, write artifacts/eval_sliding and its metrics."""
    config = load_params(SlidingConfig, "eval_sliding")
    limits = load_params(VerifyConfig, "verify")
    with stage_processes("eval_sliding") as runtime:
        session = StageSession("eval_sliding", config, runtime, limit_seconds=limits.eval_seconds)
        session.finish(score_sliding(PACKAGE_PATH, TOKENS_PATH, config, session))


if __name__ == "__main__":
    with exit_on_fault():
        main()
