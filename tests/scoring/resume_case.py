"""The evaluations that are killed and resumed, each in a process of its own."""

import os
import signal
import sys
from pathlib import Path

import torch
from process_case import CPU
from scoring_case import make_config, make_lora_config, make_sliding

from paramgolf.runtime import processes
from paramgolf.scoring import lora_documents, sliding, stage
from paramgolf.scoring.evaluation import score_adaptive, score_sliding
from paramgolf.scoring.stage import StageSession

PHASES = {"phases": 2, "prefix_documents": 6, "batch_documents": 1, "warm_a": True}
CASES = {
    "strided": (make_sliding("tilt"), score_sliding),
    "sgd": (make_config(), score_adaptive),
    "lora_stream": (
        make_lora_config("lora_stream", stream={"reset_batches": 0}),  # what is learned goes on
        score_adaptive,
    ),
    "phases": (
        make_lora_config("lora_documents", documents=PHASES, chunk_tokens=16, epochs=1),
        score_adaptive,
    ),
}


class Killed(StageSession):
    """Saves after every item, and is killed once `cut` of them are done."""

    cut: int | None = None

    def after(self, scorer, done, total):
        super().after(scorer, done, total)
        if done == self.cut:
            os.kill(os.getpid(), signal.SIGKILL)


def evaluate(case: str, folder: str, cut: int | None, environment: dict[str, str]) -> None:
    """Run a case as its stage does, as far as `cut`; what it says goes to the file `said`."""
    os.chdir(folder)
    os.environ.update(environment)
    os.environ.pop("DVC_ROOT", None)
    torch.set_num_threads(1)
    sys.stderr = Path("said").open("w")  # noqa: SIM115 (to the end of the process)
    stage.SECONDS, stage.SHARE, sliding.LEAST_PASSES = 0.0, 1e9, 2
    lora_documents.MEETING = 1
    config, score = CASES[case]
    paths = Path("model.bin"), Path()
    with processes(CPU) as runtime:
        session = Killed("eval", config, runtime, *paths)
        session.cut = cut
        session.finish(score(*paths, config, session))
