"""What quantising and packing cost: `python benchmarks/quantize.py [--folder DIR] [--skip ...]`.

OPENBLAS_NUM_THREADS=1 before it, as the stages set it for themselves: else numpy's threads spin.
Part gptq has rows of its own on a CPU, where few calibrate.sequences do: values cost no time.

Needs a folder in which a recipe was trained: its params.yaml, data/tokens and artifacts/train; only
artifacts of later stages are written there. The codecs need nothing but artifacts/package.
Two settings are fitted to the same bytes, code included, by our coder: that of recipe pr2135, as
published, and ours, that of recipe best. The loss is that of the validation text, in windows
without overlap. A model far smaller than the limit is fitted to the published setting's own size.
Part brotli fits the published setting by its own coder. Part parts adds each technique to the
published setting, and leaves it out of ours; part values tries other values in ours. As the loss
falls as 4^-bits, what a change is worth in bits per weight at equal loss is the change of bits +
log2(loss) / 2. Parts may run side by side, each on a GPU: their results are joined.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from tables import Row, write_results

from paramgolf.codec import rans, rans_writer
from paramgolf.codec.codecs import shuffle
from paramgolf.codec.config import PackageConfig
from paramgolf.codec.container import decode, dequantized, read_container
from paramgolf.codec.writer import compress, encode
from paramgolf.data.special_tokens import BOS
from paramgolf.data.token_set import TokenSet, open_tokens
from paramgolf.experiments.lab.stages import ROOT, environment_of
from paramgolf.model.network import Network, Pass
from paramgolf.packing.code import frozen_params, pack_code
from paramgolf.params import read_yaml
from paramgolf.progress import say
from paramgolf.quant.adjust import adjust
from paramgolf.quant.calibrate import collect, generate_texts
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.fit import artifact_parts, fit, scaled
from paramgolf.quant.quantize import prepare, solve_model
from paramgolf.quant.report import entropy_bits, stored_bits
from paramgolf.quant.solved import Family
from paramgolf.quant.trained import TEXTS, Trained, load_trained
from paramgolf.recipes import Params, check, compose
from paramgolf.runtime import Runtime, processes, synchronize
from paramgolf.scoring.stage import PACKAGE_PATH
from paramgolf.training.validate import validate

LIMIT_BYTES = 15_990_000
SENSITIVITY_SEQUENCES = 64
WRITTEN = 128  # texts
COMMAND = "OPENBLAS_NUM_THREADS=1 python benchmarks/quantize.py"
PARTS = ("gptq", "loss", "brotli", "parts", "values", "write", "stages", "codecs")


class Setting(NamedTuple):
    """How a network is quantized.

    Attributes:
        quantize: the parameters.
        weighted_head: of the Hessians (calibrate.weighted_head).
    """

    quantize: QuantizeConfig
    weighted_head: bool

    def changed(self, changes: Mapping[str, Any]) -> Setting:
        """Return the setting with other values of some keys."""
        of_quantize = {k: v for k, v in changes.items() if k != "weighted_head"}
        weighted = changes.get("weighted_head", self.weighted_head)
        return Setting(replace(self.quantize, **of_quantize), weighted)

    def coarser(self, doublings: float) -> Setting:
        """Return the setting with all clips doubled so many times."""
        return self._replace(quantize=scaled(self.quantize, doublings))


PUBLISHED, BEST = (
    Setting(params.quantize, params.calibrate.weighted_head)
    for params in (check(compose(n, ROOT / "recipes"), where=n) for n in ("pr2135", "best"))
)
RANS = PUBLISHED.changed({"fit_codec": "rans"})
# 7 bits with twice the clip have the step of 6, and room for finer rows and columns
ROOM = {"matrix_bits": 7, "attention_clip": 26.0, "mlp_clip": 23.0}
Changes = dict[str, dict[str, Any]]
ALONE: Changes = {
    "trellis": {**ROOM, "trellis": True},
    "balance": {**ROOM, "balance": BEST.quantize.balance},
    "column steps": {**ROOM, "column_steps": True},
    "weight of the rate": {**ROOM, "rate_weight": BEST.quantize.rate_weight},
    "weights of tokens": {"weighted_head": True},
    "adjustment": {"adjust_steps": BEST.quantize.adjust_steps, "low_rank_matrices": 0},
}
# what the published setting has and ours has not
LEFT_OUT_OF_PUBLISHED: Changes = {"low rank": {"low_rank_matrices": 0}}
LEFT_OUT: Changes = {
    "trellis": {"trellis": False},
    "balance": {"balance": 0.0},
    "column steps": {"column_steps": False},
    "weight of the rate": {"rate_weight": 0.0},
    "weights of tokens": {"weighted_head": False},
    "adjustment": {"adjust_steps": 0},
}
VALUES: Changes = {  # of other keys, in ours
    "balance 1": {"balance": 1.0},
    "half of the adjustment": {"adjust_steps": 16},
    "twice the adjustment": {"adjust_steps": 64},
    "a digit more of scales": {"scale_digits": BEST.quantize.scale_digits + 1},
}
Variant = tuple[str, Setting]


class Bench:
    """A trained model, its Hessians, and what is measured of them."""

    def __init__(self, params: Params, runtime: Runtime) -> None:
        self.params, self.runtime = params, runtime
        self.trained: Trained = load_trained()
        self.tokens: TokenSet = open_tokens()
        config = replace(params.calibrate, source="train")
        count = min(SENSITIVITY_SEQUENCES, config.sequences)
        config = replace(config, sensitivity_sequences=count)
        self.hessians = {
            weighted: collect(
                self.trained, self.tokens, replace(config, weighted_head=weighted), runtime
            )[0]
            for weighted in (False, True)
        }
        self.network = Network(self.trained.model, self.trained.vocab_size)
        self.network = self.network.on(replace(runtime, compile=False))
        self.before = self.bits_per_byte(self.trained.state)
        self.limit = LIMIT_BYTES
        self.weights = sum(tensor.numel() for tensor in self.trained.state.values())
        if self.weights < self.limit:
            self.limit = self.packed(self.solve(RANS), RANS)
            say(f"quantize: the model is small; both settings are fitted to {self.limit:,} bytes")
        self.losses: dict[str, float] = {}
        self.fits: dict[str, Setting] = {}
        self.solution: Any = None

    def timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """Return what `work` returns, and its seconds."""
        synchronize(self.runtime.device)
        start = time.perf_counter()
        found = work()
        synchronize(self.runtime.device)
        return found, time.perf_counter() - start

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

    def solve(self, setting: Setting) -> Any:
        """Factorise, quantise and adjust."""
        families = self.prepared(setting)
        return self.adjusted(solve_model(self.trained, families, setting.quantize), setting)

    def prepared(self, setting: Setting) -> list[Family]:
        """Factorise."""
        hessians = self.hessians[setting.weighted_head]
        return prepare(self.trained, hessians, setting.quantize, self.runtime.device)

    def adjusted(self, solution: Any, setting: Setting) -> Any:
        """Let scales and vectors learn, where the setting says so."""
        if not setting.quantize.adjust_steps:
            return solution
        texts, (tensors, reports) = self.hessians[False][TEXTS].long(), solution
        return adjust(self.trained, tensors, texts, setting.quantize, self.runtime), reports

    def packed(self, solution: Any, setting: Setting) -> int:
        """Return the bytes of the artifact of a solution."""
        config = setting.quantize
        coded = replace(config, fit_code_bytes=self.code_bytes(config.fit_codec))
        return sum(part.bytes for part in artifact_parts(self.trained, coded)(solution))

    def fitted(self, setting: Setting, limit: int) -> tuple[float, dict[str, Any], float]:
        """Return bits per byte at `limit` bytes, the record of the search, and its seconds."""
        code = self.code_bytes(setting.quantize.fit_codec)
        coded = replace(setting.quantize, fit_bytes=limit, fit_code_bytes=code)

        def search() -> Any:
            families, measure = self.prepared(setting), artifact_parts(self.trained, coded)
            found = fit(coded, lambda one: solve_model(self.trained, families, one), measure)
            return self.adjusted(found[0], setting), found[1]

        (solution, record), seconds = self.timed(search)
        self.solution = solution
        return self.bits_per_byte(dequantized(solution[0])), record, seconds


def gptq_rows(bench: Bench) -> Iterator[Row]:
    """Factorise the Hessians and quantise all matrices, by the published setting and by ours."""
    on_cpu = bench.runtime.device.type == "cpu"
    where, target = (f", {torch.get_num_threads()} CPU cores", 90.0) if on_cpu else ("", 10.0)
    best = BEST.changed({"adjust_steps": 0})
    bench.solve(best)  # kernels are compiled, and libraries choose their algorithms
    _, seconds = bench.timed(lambda: bench.solve(PUBLISHED))
    yield Row(f"GPTQ, all matrices{where}", seconds, "s", None, target, "lower")
    _, seconds = bench.timed(lambda: bench.solve(best))
    yield Row(f"GPTQ with the trellis, all matrices{where}", seconds, "s", None, target, "lower")


def loss_rows(bench: Bench) -> Iterator[Row]:
    """Fit both settings to the same bytes and score them; time the coder on ours."""
    yield Row("before quantising", bench.before, "bits/byte", None, None, "lower")
    for name, config in (("published", RANS), ("ours", BEST)):
        yield from fit_rows(bench, name, config)
    ratio = bench.losses["ours"] / bench.losses["published"]
    yield Row("loss by quantising, ours / published", ratio, "", None, 0.6, "lower")
    content, seconds = bench.timed(lambda: encoded(bench))
    yield Row("ours: encode", seconds, "s", None, 15.0, "lower")
    _, seconds = bench.timed(lambda: decode(content))
    yield Row("ours: decode, one core", seconds, "s", None, 5.0, "lower")


def brotli_rows(bench: Bench) -> Iterator[Row]:
    """Fit the published setting by its own coder."""
    yield from fit_rows(bench, "published, brotli", PUBLISHED)


def fit_rows(bench: Bench, name: str, setting: Setting) -> Iterator[Row]:
    """Fit a setting and score it; remember its loss and clips."""
    score, record, seconds = bench.fitted(setting, bench.limit)
    bench.losses[name] = score - bench.before
    bench.fits[name] = setting.coarser(math.log2(record["multiplier"]))
    size = bench.packed(bench.solution, setting)
    yield Row(f"{name}: bytes", size, "bytes", None, bench.limit, "lower")
    yield Row(f"{name}: loss by quantising", bench.losses[name], "bits/byte", None, None, "lower")
    yield Row(f"{name}: fit", seconds, "s", None, 90.0, "lower")


def encoded(bench: Bench) -> bytes:
    """Return model.bin of the last solution that was fitted."""
    tensors, reports = bench.solution
    described = {**bench.trained.config, "quantize": {"bits": stored_bits(tensors, reports)}}
    options = PackageConfig(codec="rans", byte_shuffle=True, limit_bytes=1, prune=False)
    return encode(tensors, described, options)[0]


def part_rows(bench: Bench) -> Iterator[Row]:
    """Add each technique to the published setting, and leave it out of ours."""
    published, ours = (bench.fits.get(n, c) for n, c in (("published", RANS), ("ours", BEST)))
    variants: list[Variant] = [("published", published), ("ours", ours)]
    variants += [(f"published, and {n}", alone(published, c)) for n, c in ALONE.items()]
    variants += [
        (f"{name}, without {n}", setting.changed(c))
        for name, setting, left_out in (
            ("published", published, LEFT_OUT_OF_PUBLISHED),
            ("ours", ours, LEFT_OUT),
        )
        for n, c in left_out.items()
    ]
    yield from variant_rows(bench, variants)
    solution = bench.solve(ours)
    whole = bench.packed(solution, ours)
    with mock.patch.object(rans_writer, "STEP_NATS", math.inf):
        without = bench.packed(solution, ours)
    saved = 8 * (without - whole) / bench.weights
    yield Row("ours, without deviations of rows: costs", saved, "bits", None, None, "higher")


def value_rows(bench: Bench) -> Iterator[Row]:
    """Try other values in ours."""
    ours = bench.fits.get("ours", BEST)
    variants = [("ours", ours), *((f"ours, {n}", ours.changed(c)) for n, c in VALUES.items())]
    yield from variant_rows(bench, variants)


def variant_rows(bench: Bench, variants: list[Variant]) -> Iterator[Row]:
    """Solve, pack and score each variant; the first is what the others are compared with."""
    level = None
    with ThreadPoolExecutor(4) as pool:  # packing takes a core for seconds: the GPU goes on
        points = []
        for name, setting in variants:
            solution, seconds = bench.timed(functools.partial(bench.solve, setting))
            loss = bench.bits_per_byte(dequantized(solution[0])) - bench.before
            points.append((name, loss, seconds, pool.submit(bench.packed, solution, setting)))
        for name, loss, seconds, size in points:
            bits = 8 * size.result() / bench.weights
            worth = bits + math.log2(max(loss, 1e-9)) / 2
            level = worth if level is None else level
            yield Row(f"{name}: bits per weight", bits, "", None, None, "lower")
            yield Row(f"{name}: loss", loss, "bits/byte", None, None, "lower")
            yield Row(f"{name}: saved at equal loss", level - worth, "bits", None, None, "higher")
            yield Row(f"{name}: solve", seconds, "s", None, None, "lower")


def alone(setting: Setting, changes: dict[str, Any]) -> Setting:
    """Return the published setting with a technique, at the clips that it was fitted to."""
    ratio = setting.quantize.attention_clip / PUBLISHED.quantize.attention_clip
    clips = {name: ratio * value for name, value in changes.items() if name.endswith("_clip")}
    return setting.changed({**changes, **clips})


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

    measures = {
        "gptq": gptq_rows,
        "loss": loss_rows,
        "parts": part_rows,
        "values": value_rows,
        "brotli": brotli_rows,
        "write": write_rows,
    }
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
