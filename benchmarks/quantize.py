"""What quantising and packing cost: `python benchmarks/quantize.py [--folder DIR] [--parts ...]`.

Part gptq has rows of its own on a CPU, where few calibrate.sequences do: values cost no time.

Needs a folder in which a recipe was trained: its params.yaml, data/tokens and artifacts/train; only
artifacts of later stages are written there. The codecs need nothing but artifacts/package.
Part loss fits two settings to the same bytes, code included, by our coder: that of recipe pr2135,
as published, and ours, that of recipe best. The loss is that of the validation text, in windows
without overlap. A model far smaller than the limit is fitted to the published setting's own size.
Part brotli fits the published setting by its own coder. Part left_out leaves each technique out of
ours, part alone adds each to the published setting, and part values tries other values in ours. As
the loss falls as 4^-bits, what a change is worth in bits per weight at equal loss is the change of
bits + log2(loss) / 2. Parts run in the order in which they are named, or side by side, each in a
process: their results are joined."""

from __future__ import annotations

from paramgolf.process import start_process

start_process()  # before numpy is loaded, whose threads would spin: as in the stages

import argparse
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quantizer import Bench, Point
from tables import Row, write_results

from paramgolf.codec import rans
from paramgolf.codec.codecs import shuffle
from paramgolf.codec.container import decode, read_container
from paramgolf.codec.writer import compress, encode
from paramgolf.data.special_tokens import BOS
from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.stages import ROOT, environment_of
from paramgolf.params import read_yaml
from paramgolf.program import exit_on_fault
from paramgolf.progress import say
from paramgolf.quant.calibrate import generate_texts
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.report import entropy_bits, stored_bits
from paramgolf.recipes import check, compose
from paramgolf.runtime import processes
from paramgolf.scoring.stage import PACKAGE_PATH

WRITTEN = 128  # texts
WITHOUT_DEVIATIONS = (
    "import math; from paramgolf.codec import rans_writer; "
    "rans_writer.STEP_NATS = math.inf; rans_writer.main()"
)

PUBLISHED, BEST = (
    check(compose(name, ROOT / "recipes"), where=name).quantize for name in ("pr2135", "best")
)
RANS = replace(PUBLISHED, fit_codec="rans")
# 7 bits with twice the clip have the step of 6, and room for finer rows and columns
ROOM = {"matrix_bits": 7, "attention_clip": 26.0, "mlp_clip": 23.0}
Changes = dict[str, dict[str, Any]]
ALONE: Changes = {
    "trellis": {**ROOM, "trellis": True},
    "balance": {**ROOM, "balance": BEST.balance},
    "column steps": {**ROOM, "column_steps": True},
    "adjustment": {"adjust_steps": BEST.adjust_steps, "low_rank_matrices": 0},
}
LEFT_OUT: Changes = {
    "trellis": {"trellis": False},
    "balance": {"balance": 0.0},
    "column steps": {"column_steps": False},
    "adjustment": {"adjust_steps": 0},
}
VALUES: Changes = {  # of other keys, in ours
    "balance 1": {"balance": 1.0},
    "half of the adjustment": {"adjust_steps": 16},
    "twice the adjustment": {"adjust_steps": 64},
    "a digit more of scales": {"scale_digits": BEST.scale_digits + 1},
}
Variant = tuple[str, QuantizeConfig]


def gptq_rows(bench: Bench) -> Iterator[Row]:
    """Factorise the Hessians and quantise all matrices, by the published setting and by ours."""
    on_cpu = bench.runtime.device.type == "cpu"
    where, target = (f", {torch.get_num_threads()} CPU cores", 90.0) if on_cpu else ("", 10.0)
    published, ours = fits(bench)
    # kernels are compiled, and libraries choose their algorithms
    bench.solved(ours.scaled(0.01))
    for name, setting in (("GPTQ", published), ("GPTQ with the trellis", ours)):
        seconds = bench.solved(setting)[1]
        yield Row(f"{name}, all matrices{where}", seconds, "s", None, target, "lower")


def fits(bench: Bench) -> tuple[QuantizeConfig, QuantizeConfig]:
    """Return the published setting and ours, at the clips of their fits if they were fitted."""
    return bench.fits.get("published", RANS), bench.fits.get("ours", BEST)


def loss_rows(bench: Bench) -> Iterator[Row]:
    """Fit both settings to the same bytes and score them; time the coder on ours.

    What is saved at equal loss is that of ours at clips so coarse that it loses what the published
    setting loses: of the law of 4^-bits the rest alone is made.
    """
    yield Row("before quantising", bench.before, "bits/byte", None, None, "lower")
    for name, setting in (("published", RANS), ("ours", BEST)):
        yield from fit_rows(bench, name, setting)
    published, ours = (bench.fitted_points[name] for name in ("published", "ours"))
    ratio = ours.loss / published.loss
    yield Row("loss by quantising, ours / published", ratio, "", None, 0.6, "lower")
    content, seconds = bench.timed(lambda: encoded(bench))
    yield Row("ours: encode", seconds, "s", None, 15.0, "lower")
    _, seconds = bench.timed(lambda: decode(content))
    yield Row("ours: decode, one core", seconds, "s", None, 5.0, "lower")
    coarse = bench.fits["ours"].scaled(published.level - ours.level)
    found = bench.point(coarse).result()
    yield Row("ours, coarser: bits per weight", found.bits, "", published.bits, None, "lower")
    yield Row("ours, coarser: loss", found.loss, "bits/byte", published.loss, None, "lower")
    saved = published.level - found.level
    yield Row("bits saved at equal loss, ours", saved, "bits", None, 0.3, "higher")


def brotli_rows(bench: Bench) -> Iterator[Row]:
    """Fit the published setting by its own coder."""
    yield from fit_rows(bench, "published, brotli", PUBLISHED)


def fit_rows(bench: Bench, name: str, setting: QuantizeConfig) -> Iterator[Row]:
    """Fit a setting and score it; remember its clips and what it costs."""
    score, record, seconds = bench.fitted(setting, bench.limit)
    size, loss = bench.packed(bench.solution, setting), score - bench.before
    bench.fits[name] = setting.scaled(math.log2(record["multiplier"]))
    bench.fitted_points[name] = Point(bench.bits(size), loss, seconds)
    yield Row(f"{name}: bytes", size, "bytes", None, bench.limit, "lower")
    yield Row(f"{name}: loss by quantising", loss, "bits/byte", None, None, "lower")
    yield Row(f"{name}: fit", seconds, "s", None, 90.0, "lower")


def encoded(bench: Bench) -> bytes:
    """Return model.bin of the last solution that was fitted."""
    tensors, reports = bench.solution
    described = {**bench.trained.config, "quantize": {"bits": stored_bits(tensors, reports)}}
    return encode(tensors, described, "rans")[0]


def left_out_rows(bench: Bench) -> Iterator[Row]:
    """Leave each technique out of ours."""
    ours = fits(bench)[1]
    variants = [(f"ours, without {n}", replace(ours, **c)) for n, c in LEFT_OUT.items()]
    yield from variant_rows(bench, ("ours", ours), variants)
    tensors = bench.solved(ours)[0][0]
    matrices = [tensor for name, tensor in tensors.items() if name.endswith(".integers")]
    with ThreadPoolExecutor() as pool:
        more = bench.bits(sum(pool.map(deviations_save, matrices)))
    yield Row("ours, without deviations of rows: costs", more, "bits", None, None, "higher")


def deviations_save(integers: torch.Tensor) -> int:
    """Return the bytes by which a matrix grows where the coder knows no deviations of rows."""
    raw, shape = integers.numpy().tobytes(), tuple(integers.shape)
    command = [sys.executable, "-c", WITHOUT_DEVIATIONS, *map(str, shape)]
    without = subprocess.run(command, input=raw, stdout=subprocess.PIPE, check=True).stdout
    return len(without) - len(compress("rans", raw, shape))


def alone_rows(bench: Bench) -> Iterator[Row]:
    """Add each technique to the published setting."""
    published = fits(bench)[0]
    without = replace(published, low_rank_matrices=0)
    variants = [("published, without low rank", without)]
    variants += [(f"published, and {n}", alone(published, c)) for n, c in ALONE.items()]
    yield from variant_rows(bench, ("published", published), variants)


def value_rows(bench: Bench) -> Iterator[Row]:
    """Try other values in ours."""
    ours = fits(bench)[1]
    variants = [(f"ours, {n}", replace(ours, **c)) for n, c in VALUES.items()]
    yield from variant_rows(bench, ("ours", ours), variants)


def variant_rows(bench: Bench, reference: Variant, variants: list[Variant]) -> Iterator[Row]:
    """Measure the reference, and each variant against it."""
    points = [(name, bench.point(setting)) for name, setting in (reference, *variants[:1])]
    level = points[0][1].result().level
    for name, setting in variants[1:]:
        yield from point_rows(points[0][0], points[0][1].result(), level)
        points = [*points[1:], (name, bench.point(setting))]
    for name, point in points:
        yield from point_rows(name, point.result(), level)


def point_rows(name: str, point: Point, level: float) -> Iterator[Row]:
    """Return the rows of a point; `level` is that of what it is compared with."""
    yield Row(f"{name}: bits per weight", point.bits, "", None, None, "lower")
    yield Row(f"{name}: loss", point.loss, "bits/byte", None, None, "lower")
    yield Row(f"{name}: saved at equal loss", level - point.level, "bits", None, None, "higher")
    yield Row(f"{name}: solve", point.seconds, "s", None, None, "lower")


def alone(setting: QuantizeConfig, changes: dict[str, Any]) -> QuantizeConfig:
    """Return the published setting with a technique, at the clips that it was fitted to."""
    ratio = setting.attention_clip / PUBLISHED.attention_clip
    clips = {name: ratio * value for name, value in changes.items() if name.endswith("_clip")}
    return replace(setting, **changes, **clips)


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
    if code := subprocess.run(command, env=environment_of(ROOT, None)).returncode:
        raise ParamGolfError(f"stage {stage} ended with {code}")
    return time.perf_counter() - start


WITH_NETWORK: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "loss": loss_rows,
    "gptq": gptq_rows,
    "left_out": left_out_rows,
    "alone": alone_rows,
    "values": value_rows,
    "brotli": brotli_rows,
    "write": write_rows,
}
BY_STAGES: dict[str, Callable[[], Iterator[Row]]] = {"stages": stage_rows, "codecs": codec_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(), help="where a recipe was trained")
    every = [*WITH_NETWORK, *BY_STAGES]
    parser.add_argument("--parts", nargs="+", default=every, choices=every)
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"no folder {options.folder}")
    os.chdir(options.folder)
    params = check(read_yaml("params.yaml"), where="params.yaml")
    rows: list[Row] = []

    def add(part: str, found: Iterable[Row]) -> None:
        start = time.perf_counter()
        for row in found:
            say(f"{row.figure}: {row.value:,.6g} {row.unit}")
            rows.append(row)
            write_results("quantize", rows, show=False)
        say(f"quantize: part {part}: {time.perf_counter() - start:.1f} s")

    of_network = [part for part in options.parts if part in WITH_NETWORK]
    if of_network:
        with processes(replace(params.runtime, processes=1)) as runtime:
            bench = Bench(params, runtime)
            if bench.weights < bench.limit:
                bench.limit = bench.packed(bench.solved(RANS)[0], RANS)
                say(f"quantize: a small model; both settings are fitted to {bench.limit:,} bytes")
            for part in of_network:
                add(part, WITH_NETWORK[part](bench))
    for part in options.parts:
        if part in BY_STAGES:
            add(part, BY_STAGES[part]())
    write_results("quantize", rows)


if __name__ == "__main__":
    with exit_on_fault():
        main()
