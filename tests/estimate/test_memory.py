"""Estimated memory against what training holds, and against what was measured on GPUs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from process_case import ALONE
from recipe_case import recipe

from paramgolf.estimate.devices import DEVICES, GIB
from paramgolf.estimate.memory import LANE_WIDTHS, training_memory
from paramgolf.estimate.speed import Machine
from paramgolf.files import read_json
from paramgolf.model.network import Network
from paramgolf.model.plan import plan
from paramgolf.recipes import Params
from paramgolf.training.schedule import point
from paramgolf.training.state import TrainState

ROOT = Path(__file__).parents[2]
VOCAB = 1000
H100 = Machine(device=DEVICES["H100"], count=1)


@pytest.mark.parametrize("blocks_only", [True, False])
def test_state_in_memory_is_what_training_holds(blocks_only, sample, tiny_model):
    model = tiny_model(value_embedding_layers=(1,), bigram_buckets=64)
    train = dataclasses.replace(sample.train, muon_blocks_only=blocks_only)
    network = Network(model, VOCAB, seed=0)
    state = TrainState(network, train, ALONE)
    state.zero_grad()
    expected = training_memory(model, train, VOCAB, Machine(device=DEVICES["cpu"], count=1))
    parameters = 4 * sum(p.numel() for p in network.parameters())
    assert expected.weights == expected.gradients == expected.average == parameters
    state.step(point(train, 0, 0.0))  # makes the moments
    saved = state.state()
    moments = [t for held in saved["adam"]["state"].values() for t in held.values() if t.dim()]
    held = [*saved["momentum"].values(), *moments]
    assert expected.optimizer == 4 * sum(t.numel() for t in held)


RESULTS = ROOT / "benchmarks/results"
PASS_TOKENS = 98_304  # of everything that was measured
SPEEDS = {
    row["figure"]: row["value"]
    for row in reversed(
        read_json(RESULTS / "train_speed.json")["rows"]
    )  # of several devices the first
}
RUNS = read_json(RESULTS / "recipes.json")["runs"]["recipes"]
# widths that passes lacked before attention had a key and value for each query head
SHARED_KEYS = dict.fromkeys(LANE_WIDTHS, -1)
SHAPES = {"best, in pr2135's shape": "pr2135", "h100x1, 120 s": "pr1493"}  # that runs had


def expected_bytes(name: str, **older: int) -> int:
    """Return the memory that a recipe's passes are expected to take."""
    params = recipe(name)
    pass_tokens = params.train.micro_batch_tokens
    total = training_memory(params.model, params.train, params.tokenizer.vocab_size, H100).total
    steps = plan(params.model, max(params.model.orders, key=len))
    kinds = [params.model.parallel if step.parallel else "none" for step in steps]
    widths = sum(older.get(kind, 0) for kind in kinds)
    return total + pass_tokens * H100.device.compute_bytes * widths * params.model.width


@pytest.mark.parametrize(
    ("figure", "older"),
    [
        ("pr1493, peak memory, 98,304 tokens", {}),
        ("pr1855, peak memory, 98,304 tokens", SHARED_KEYS),
        ("best, fp8_mlp, memory, 196,608 tokens a step; reference: bf16", SHARED_KEYS),
        ("best, fp8_mlp, memory, 786,432 tokens a step; reference: keys shared", {}),
    ],
)
def test_memory_is_that_of_a_step_measured_on_a_gpu(figure, older):
    expected = expected_bytes(figure.partition(",")[0], **older)
    assert expected == pytest.approx(SPEEDS[figure] * GIB, rel=0.03)


@pytest.mark.parametrize("name", RUNS)
def test_memory_is_that_of_each_recipe_that_was_trained(name):
    """They shared keys; those without a commit kept unmixed lanes beside their norm."""
    run = RUNS[name]
    if "before the fused kernels" in name:
        pytest.skip("plain operations")
    if name in ("pr1392, before its correction", "pr1499, before its correction"):
        pytest.skip("a network of two lanes (pr1392), with another XSA (pr1499)")
    older = SHARED_KEYS if "commit" in run else {"none": 1, "single": 0, "merge": 0, "lanes": 0}
    trained = SHAPES.get(name, name.partition(",")[0])
    measured = run["figures"]["peak_memory_bytes"]
    assert expected_bytes(trained, **older) == pytest.approx(measured, rel=0.1)


def test_a_pass_that_keeps_less_takes_less(base: Params):
    """Recurrence, XSA and a second lane each cost what their tensors hold."""
    memory = {
        name: training_memory(
            dataclasses.replace(base.model, **changes), base.train, 8192, H100
        ).activations
        for name, changes in {
            "whole": {},
            "no recurrence": {"recurrence": ()},
            "no XSA": {"xsa_layers": 0},
            "two lanes": {"parallel": "lanes", "parallel_start": 9},
        }.items()
    }
    assert memory["no recurrence"] < 0.75 * memory["whole"]
    assert memory["whole"] - memory["no XSA"] == 17 * PASS_TOKENS * 2 * 512
    assert memory["two lanes"] > memory["whole"]


def test_fp8_keeps_an_input_transposed_and_signs(base: Params):
    short = dataclasses.replace(base.train, precision="fp8_mlp")
    plain, found = (training_memory(base.model, t, 8192, H100) for t in (base.train, short))
    assert found.total - plain.total == 17 * PASS_TOKENS * (512 + 2048 // 8)


def test_a_device_holds_its_share_of_a_small_batch(sample):
    memory = [
        training_memory(sample.model, sample.train, 1024, dataclasses.replace(H100, count=n))
        for n in (1, 8)
    ]
    assert memory[0].activations == 8 * memory[1].activations
    assert memory[1].gradients == memory[0].gradients  # summed in place
