"""Score a packed model as training validates: `python -m paramgolf.experiments.packed_score`.

Reads artifacts/package/model.bin, data/tokens and params.yaml of the folder it is started in. The
text, its windows and what attention sees are those of the last validation of training, so that the
difference from train's `val_bpb` is what quantizing costs. Writes artifacts/metrics/packed.json.
"""

from __future__ import annotations

from paramgolf.data.token_set import TOKENS_PATH, open_tokens
from paramgolf.files import write_json
from paramgolf.gpu_slots import take_gpus
from paramgolf.launch import launch
from paramgolf.metrics import METRICS
from paramgolf.model.network import Pass
from paramgolf.model.token_mask import masked
from paramgolf.params import load_params
from paramgolf.program import exit_on_fault, start_program
from paramgolf.runtime import processes
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.scoring.evaluation import load_network
from paramgolf.scoring.stage import PACKAGE_PATH
from paramgolf.training.config import TrainConfig
from paramgolf.training.validate import validate

BATCH_TOKENS = 98_304  # of a forward pass, as in training's validation


def main() -> None:
    """Read params.yaml, score, write the metrics."""
    machine, train = load_params(RuntimeConfig, "runtime"), load_params(TrainConfig, "train")
    sizes = train.batch_sizes[-1]
    length = sizes.sequence_length
    launch(len(take_gpus(machine)) or machine.processes or 1)
    with processes(machine) as runtime:
        network, tokens = load_network(PACKAGE_PATH, runtime), open_tokens(TOKENS_PATH)
        if train.token_mask:
            network = masked(network, tokens)
        score = validate(
            network,
            tokens.val(),
            tokens.val_bytes(),
            Pass(network.config.orders[-1], document_tokens=train.document_tokens(sizes)),
            runtime,
            length=length,
            batch_windows=max(1, BATCH_TOKENS // length),
            max_tokens=None,
        )
        if runtime.is_main:
            found = {"val_bpb": score.bits_per_byte, "tokens_scored": score.tokens}
            write_json(METRICS / "packed.json", found)


if __name__ == "__main__":
    start_program()
    with exit_on_fault():
        main()
