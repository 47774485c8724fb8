"""What quantising and packing cost: `python benchmarks/quantize.py [--folder DIR] [--skip ...]`.

OPENBLAS_NUM_THREADS=1 before it, as the stages set it for themselves: else numpy's threads spin.
Part gptq has rows of its own on a CPU, where few calibrate.sequences do: values cost no time.

Needs a folder in which a recipe was trained: its params.yaml, data/tokens and artifacts/train; only
artifacts of later stages are written there. The codecs need nothing but artifacts/package.
Two settings are fitted to the same bytes, code included: the reference (SDClip of 12.85 deviations
at 6 bits, the embedding's of 20 at 8, brotli) and ours, that of recipe best (a trellis, steps
balanced by sensitivity, our coder); the loss is that of the validation text, in windows without
overlap. A model far smaller than the limit is fitted to the reference's own size.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import Row, write_results

from paramgolf.codec import rans
from paramgolf.codec.codecs import shuffle
from paramgolf.codec.container import dequantized, read_container
from paramgolf.codec.writer import compress
from paramgolf.data.special_tokens import BOS
from paramgolf.data.token_set import TokenSet, open_tokens
from paramgolf.experiments.lab.stages import ROOT, environment_of
from paramgolf.model.network import Network, Pass
from paramgolf.packing.code import frozen_params, pack_code
from paramgolf.params import read_yaml
from paramgolf.progress import say
from paramgolf.quant.calibrate import collect, generate_texts
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.fit import artifact_parts, fit
from paramgolf.quant.quantize import prepare, solve_model
from paramgolf.quant.report import entropy_bits
from paramgolf.quant.trained import Trained, load_trained
from paramgolf.recipes import Params, check, compose
from paramgolf.runtime import Runtime, processes, synchronize
from paramgolf.scoring.stage import PACKAGE_PATH
from paramgolf.training.validate import validate

LIMIT_BYTES = 15_990_000
SENSITIVITY_SEQUENCES = 64
WRITTEN = 128  # texts
COMMAND = "OPENBLAS_NUM_THREADS=1 python benchmarks/quantize.py"
PARTS = ("gptq", "loss", "write", "stages", "codecs")
REFERENCE = {
    "method": "gptq",
    "embedding_method": None,
    "grid": "sdclip",
    "matrix_bits": 6,
    "embedding_bits": 8,
    "high_bits_matrices": None,
    "attention_clip": 12.85,
    "mlp_clip": 12.85,
    "embedding_clip": 20.0,
    "hessian_clip": 0.0,
    "damping": 0.01,
    "act_order": True,
    "trellis": False,
    "balance": 0.0,
    "scale_digits": 10,
    "vector_digits": 10,
    "finer_groups": 0,
    "low_rank_matrices": 0,
    "fit_codec": "brotli",
}
BEST = check(compose("best", ROOT / "recipes"), where="best").quantize
OURS = {key: getattr(BEST, key) for key in REFERENCE}


class Bench:
    """A trained model, its Hessians, and what is measured of them."""

    def __init__(self, params: Params, runtime: Runtime) -> None:
        self.params, self.runtime = params, runtime
        self.trained: Trained = load_trained()
        self.tokens: TokenSet = open_tokens()
        config = replace(params.calibrate, source="train")
        count = min(SENSITIVITY_SEQUENCES, config.sequences)
        config = replace(config, sensitivity_sequences=count)
        self.hessians, _ = self.timed(lambda: collect(self.trained, self.tokens, config, runtime))[
            0
        ]
        self.network = Network(self.trained.model, self.trained.vocab_size)
        self.network = self.network.on(replace(runtime, compile=False))

    def timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """Return what `work` returns, and its seconds."""
        synchronize(self.runtime.device)
        start = time.perf_counter()
        found = work()
        synchronize(self.runtime.device)
        return found, time.perf_counter() - start

    def config(self, **changes: Any) -> QuantizeConfig:
        """Return the recipe's parameters of quantize with changes."""
        return replace(self.params.quantize, **changes)

    def bits_per_byte(self, state: dict[str, torch.Tensor]) -> float:
        """Score weights on the validation text."""
        self.network.load_state_dict(state)
        length = self.trained.sequence_length
        return validate(
            self.network,
            self.tokens.val(),
            self.tokens.val_bytes(),
            Pass(order=self.trained.model.orders[-1]),
            self.runtime,
            length=length,
            batch_windows=max(1, 65536 // length),
            max_tokens=self.params.eval_sliding.max_tokens,
        ).bits_per_byte

    def code_bytes(self, codec: str) -> int:
        """Return the bytes of train_gpt.py."""
        p = self.params
        frozen = frozen_params(asdict(self.trained.model), p.train, p.eval_sliding, p.eval_ttt)
        return len(pack_code(frozen, rans=codec == "rans").content)

    def solve(self, config: QuantizeConfig) -> Any:
        """Factorise and quantise."""
        families = prepare(self.trained, self.hessians, config, self.runtime.device)
        return solve_model(self.trained, families, config)

    def total(self, config: QuantizeConfig) -> int:
        """Return the bytes of an artifact without fitting it."""
        coded = replace(config, fit_code_bytes=self.code_bytes(config.fit_codec))
        return sum(p.bytes for p in artifact_parts(self.trained, coded)(self.solve(coded)))

    def fitted(self, config: QuantizeConfig, limit: int) -> tuple[float, dict[str, Any], float]:
        """Return bits per byte at `limit` bytes, the record of the search, and its seconds."""
        coded = replace(config, fit_bytes=limit, fit_code_bytes=self.code_bytes(config.fit_codec))

        def search() -> Any:
            families = prepare(self.trained, self.hessians, coded, self.runtime.device)
            measure = artifact_parts(self.trained, coded)
            return fit(coded, lambda one: solve_model(self.trained, families, one), measure)

        (solution, record), seconds = self.timed(search)
        return self.bits_per_byte(dequantized(solution[0])), record, seconds


def gptq_rows(bench: Bench) -> Iterator[Row]:
    """Factorise the Hessians and quantise all matrices, by the reference setting and by ours."""
    on_cpu = bench.runtime.device.type == "cpu"
    where, target = (f", {torch.get_num_threads()} CPU cores", 90.0) if on_cpu else ("", 3.0)
    _, seconds = bench.timed(lambda: bench.solve(bench.config(**REFERENCE)))
    yield Row(f"GPTQ, all matrices{where}", seconds, "s", None, target, "lower")
    _, seconds = bench.timed(lambda: bench.solve(bench.config(**OURS)))
    yield Row(f"GPTQ with the trellis, all matrices{where}", seconds, "s", None, None, "lower")


def loss_rows(bench: Bench) -> Iterator[Row]:
    """Fit both settings to the same bytes and score them."""
    before = bench.bits_per_byte(bench.trained.state)
    yield Row("before quantising", before, "bits/byte", None, None, "lower")
    reference, ours = bench.config(**REFERENCE), bench.config(**OURS)
    limit = LIMIT_BYTES
    if sum(tensor.numel() for tensor in bench.trained.state.values()) < limit:
        limit = bench.total(reference)
        say(f"quantize: the model is small; both settings are fitted to {limit:,} bytes")
    losses = {}
    for name, config in (("reference", reference), ("ours", ours)):
        score, record, seconds = bench.fitted(config, limit)
        losses[name] = score - before
        yield Row(f"{name}: bytes", record["bytes_total"], "bytes", None, limit, "lower")
        yield Row(f"{name}: loss by quantising", losses[name], "bits/byte", None, None, "lower")
        yield Row(f"{name}: fit", seconds, "s", None, 90.0, "lower")
    ratio = losses["ours"] / losses["reference"]
    yield Row("loss by quantising, ours / reference", ratio, "", None, 0.65, "lower")


def codec_rows() -> Iterator[Row]:
    """Compress the packed model's integers in every way, as package does: all tensors at once."""
    _, tensors = read_container(PACKAGE_PATH)
    integers = {n: t for n, t in tensors.items() if n.endswith(".integers")}
    raws = {name: t.numpy().tobytes() for name, t in integers.items()}
    entropy = sum(entropy_bits(t) * t.numel() / 8 for t in integers.values())
    yield Row("integers: order-0 entropy", entropy, "bytes", None, None, "lower")
    coded: dict[str, bytes] = {}

    def coder(name: str) -> bytes:
        coded[name] = compress("rans", raws[name], tuple(integers[name].shape))
        return coded[name]

    ways: dict[str, tuple[Callable[[str], bytes], float | None]] = {
        "ours": (coder, 15.0),
        "brotli": (lambda name: compress("brotli", raws[name]), None),
        "brotli, shuffled": (lambda name: compress("brotli", shuffle(raws[name])), None),
        "LZMA": (lambda name: compress("lzma", raws[name]), None),
    }
    if shutil.which("lrzip"):
        ways["lrzip ZPAQ"] = lambda name: zpaq(raws[name]), None
    for name, (way, target) in ways.items():
        start = time.perf_counter()
        with ThreadPoolExecutor() as pool:
            size = sum(map(len, pool.map(way, raws)))
        seconds = time.perf_counter() - start
        yield Row(f"integers: {name}", size, "bytes", entropy, None, "lower")
        yield Row(f"integers: {name}, encode", seconds, "s", None, target, "lower")
    start = time.perf_counter()
    found = {name: rans.decode(data, len(raws[name])) for name, data in coded.items()}
    seconds = time.perf_counter() - start
    assert found == raws
    yield Row("integers: ours, decode", seconds, "s", None, 5.0, "lower")


def zpaq(raw: bytes) -> bytes:
    """Compress by lrzip's ZPAQ mode at its highest level."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "integers"
        path.write_bytes(raw)
        subprocess.run(["lrzip", "-q", "-z", "-L", "9", str(path)], check=True)
        return path.with_suffix(".lrz").read_bytes()


def write_rows(bench: Bench) -> Iterator[Row]:
    """Let the model write calibration text."""
    bench.network.load_state_dict(bench.trained.state)
    length, config = bench.trained.sequence_length, bench.params.calibrate
    texts, seconds = bench.timed(
        lambda: generate_texts(bench.network, range(WRITTEN), length, config, bos=BOS, seed=0)
    )
    assert np.prod(texts.shape) == WRITTEN * length
    yield Row(f"writing {WRITTEN} x {length} tokens", seconds, "s", None, 25.0, "lower")


def stage_rows() -> Iterator[Row]:
    """Run quantize, package and eval_sliding as the pipeline does, other stages cached.

    They run twice: the first time they compile what every later time finds.
    """
    if not Path("artifacts/calibrate/hessians.safetensors").is_file():
        run_stage("calibrate")
    stages = ("quantize", "package", "eval_sliding")
    for stage in stages:
        run_stage(stage)
    seconds = {stage: run_stage(stage) for stage in stages}
    yield Row("requantise to scored", sum(seconds.values()), "s", None, 60.0, "lower")
    for stage, value in seconds.items():
        yield Row(f"requantise to scored: {stage}", value, "s", None, None, "lower")


def run_stage(stage: str) -> float:
    """Run a stage in this folder; return its seconds."""
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / f"stages/{stage}.py")]
    subprocess.run(command, env=environment_of(ROOT, None), check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(), help="where a recipe was trained")
    parser.add_argument("--skip", nargs="*", default=[], choices=PARTS)
    options = parser.parse_args()
    os.chdir(options.folder)
    params = check(read_yaml("params.yaml"), where="params.yaml")
    rows: list[Row] = []

    def add(found: Iterable[Row]) -> None:
        for row in found:
            say(f"{row.figure}: {row.value:,.6g} {row.unit}")
            rows.append(row)
            write_results("quantize", rows, COMMAND, show=False)

    measures = {"gptq": gptq_rows, "loss": loss_rows, "write": write_rows}
    parts = [measure for part, measure in measures.items() if part not in options.skip]
    if parts:
        with processes(replace(params.runtime, processes=1)) as runtime:
            bench = Bench(params, runtime)
            for measure in parts:
                add(measure(bench))
    if "stages" not in options.skip:
        add(stage_rows())
    if "codecs" not in options.skip:
        add(codec_rows())
    write_results("quantize", rows, COMMAND)


if __name__ == "__main__":
    main()
