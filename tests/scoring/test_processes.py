"""Two processes (gloo, CPU) score as one does, and hold the same weights after adapting."""

import numpy as np
import torch
from process_case import joined, run_ranks
from scoring_case import (
    ALONE,
    evaluated,
    make_config,
    make_lora_config,
    make_network,
    make_sliding,
    make_text,
)

from paramgolf.runtime import Runtime
from paramgolf.scoring.session import Session

DOCUMENTS = {"batch_documents": 2, "chains": 3}
CONFIGS = {
    # one sequence in the second update of an epoch: a process has nothing to do, but must join in;
    # not clipped, since clipping would hide gradients that are summed instead of averaged
    "sgd": make_config(clip_norm=0.0, lr=0.002),
    "stream": make_lora_config("lora_stream"),
    "documents": make_lora_config(
        "lora_documents",
        documents={**DOCUMENTS, "warm_a": True, "phases": 2, "prefix_documents": 7},
        lr=0.002,
        chunk_tokens=16,
    ),
    "last layers": make_lora_config(
        "lora_documents", {"last_layers": 2}, {**DOCUMENTS, "order": "stream"}
    ),
    "strict": make_lora_config("lora_documents", documents={**DOCUMENTS, "order": "stream"}),
}


def evaluate(runtime: Runtime) -> dict[str, np.ndarray]:
    network, text = make_network(), make_text(170)
    fixed = evaluated(network, text, make_sliding(batch_windows=3), Session(runtime))
    results = {"fixed": fixed.nats}
    for name, config in CONFIGS.items():
        network = make_network()
        ledger = evaluated(network, text, config, Session(runtime))
        weights = torch.cat([p.detach().flatten() for p in network.parameters()])
        verdict = np.array(list(ledger.close().values()), dtype=float)
        results |= {
            name: ledger.nats,
            f"weights {name}": weights.numpy(),
            f"verdict {name}": verdict,
        }
    return results


def work(rank: int, folder: str) -> None:
    with joined(rank, folder) as runtime:
        np.savez(f"{folder}/{rank}.npz", **evaluate(runtime))


def test_two_processes_give_the_scores_of_one(tmp_path):
    run_ranks(work, str(tmp_path))
    one = evaluate(ALONE)
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in (0, 1))
    for name in one:
        assert (first[name] == second[name]).all()
    assert (first["fixed"] == one["fixed"]).all()
    assert (first["strict"] == one["strict"]).all()
    assert (first["last layers"] == one["last layers"]).all()
    for name in one:
        np.testing.assert_allclose(first[name], one[name], atol=2e-4)
