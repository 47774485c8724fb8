"""From a bare machine to a submission: `python benchmarks/pod.py [PART ...]`.

doctor: seconds of `paramgolf doctor`. watch: the share of a core that `paramgolf watch` takes.
download: published shards of the real sizes (sparse, so their disk is read at no cost) fetched from
a hub on 127.0.0.1, which takes its share of the cores, and put into data/tokens. mirror: what a
training that is killed together with all its processes has lost, since the checkpoint from which it
would go on, and of its log, by an S3 server on 127.0.0.1; training is the sample's, on --tokens of
its vocabulary, with a checkpoint every 5 steps.
rehearse: `paramgolf rehearse` of pr1493 with nothing compiled, and the start of training after it.
It needs a GPU, and reads --tokens, a folder of shards of the recipe's vocabulary, as data/tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from child import measured
from tables import Row, need_gpus, write_results

from paramgolf.arguments import count
from paramgolf.checkpoint import Checkpoint
from paramgolf.data.shards import header
from paramgolf.data.special_tokens import BOS
from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.stages import ROOT, write_params
from paramgolf.experiments.rehearsal import FOLDER, Rehearsed, rehearse, shortened
from paramgolf.mirror import run_name
from paramgolf.program import exit_on_fault
from paramgolf.recipes import build
from paramgolf.training_log import LOG

RECIPE = "pr1493"
GIB = 2**30
DOWNLOAD, RETOKENIZE = (str(ROOT / f"stages/{stage}.py") for stage in ("download", "retokenize"))
COMMAND = [sys.executable, "-m", "paramgolf.cli"]
START_SECONDS, WATCHED_SECONDS = 15.0, 60.0
SHARD_TOKENS, PUBLISHED_VOCABULARY = 100_000_000, 300
KILLED_AFTER = (17.0, 28.0, 39.0)  # seconds of training
LONG = [
    ("train.budget_seconds", None),
    ("train.steps", 100_000),
    ("train.checkpoint_every", 5),
    ("train.validate_every", 0),  # the clock of training, by which is counted, stops for it
    ("runtime.mirror", "s3://golf/runs"),
]


def doctor(_: argparse.Namespace) -> list[Row]:
    """Time the command, the best of three."""
    times = []
    for _turn in range(3):
        start = time.perf_counter()
        done = subprocess.run([*COMMAND, "doctor"], stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
        assert done.returncode in (0, 1), "doctor must come to its end, whatever it finds"
    return [Row("doctor", min(times), "s", None, 3.0, "lower")]


def watch(_: argparse.Namespace) -> list[Row]:
    """Count the processor's seconds of `paramgolf watch` and its children once it has started."""
    import psutil

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "artifacts/train/log.jsonl"
        log.parent.mkdir(parents=True)
        steps = ({"event": "step", "step": i, "loss": 3.0, "lr": 1.0, "tokens": i, "seconds": i}
                 for i in range(5000))  # fmt: skip
        log.write_text("".join(json.dumps(step) + "\n" for step in steps))
        write_params(Path(folder), build("sample"))
        ours, theirs = pty.openpty()
        with subprocess.Popen([*COMMAND, "watch"], cwd=folder, stdout=theirs) as process:
            os.close(theirs)
            threading.Thread(target=drained, args=(ours,), daemon=True).start()
            time.sleep(START_SECONDS)
            used = psutil.Process(process.pid)
            before, start = sum(used.cpu_times()[:4]), time.perf_counter()
            time.sleep(WATCHED_SECONDS)
            share = (sum(used.cpu_times()[:4]) - before) / (time.perf_counter() - start)
            process.terminate()
    return [Row("watch, of a core", 100 * share, "%", None, 1.0, "lower")]


def drained(terminal: int) -> None:
    """Read what is shown until nobody shows any more."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass


def download(options: argparse.Namespace) -> list[Row]:
    """Serve, fetch and take over published shards."""
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        root = Path(folder)
        write_repository(root / "hub", options.shards)
        total = sum(path.stat().st_size for path in (root / "hub").rglob("*.bin"))
        server = [sys.executable, str(ROOT / "benchmarks/published_hub.py"), str(root / "hub")]
        pipe = subprocess.PIPE
        with subprocess.Popen(server, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as hub:
            assert hub.stdout is not None
            address = hub.stdout.readline().decode().strip()
            hubs = {"HF_ENDPOINT": address, "HF_HOME": str(root / "cache"), "NO_PROXY": "*"}
            changes = [
                ("data.source", "hub"),
                ("data.hub.repository", "somebody/parameter-golf"),
                ("data.hub.train_shards", options.shards),
                ("tokenizer.vocab_size", PUBLISHED_VOCABULARY),
            ]
            write_params(root, build(RECIPE, changes))
            fetched = measured([DOWNLOAD], root, {**os.environ, **hubs})
        taken = measured([RETOKENIZE], root)
    name = f"{options.shards} shards of 200 MB in {options.work}"
    rate = total / fetched.seconds / 1e6
    return [
        Row(f"download, {name}", rate, "MB/s", None, 200.0, "higher"),
        Row(f"download, {name}: memory", fetched.memory / GIB, "GiB", None, 1.0, "lower"),
        Row(f"download, {name}: processor", fetched.processor, "s", None, None, "lower"),
        Row(f"retokenize, {name}", total / taken.seconds / 1e6, "MB/s", None, None, "higher"),
        Row(f"retokenize, {name}: memory", taken.memory / GIB, "GiB", None, 1.0, "lower"),
    ]


def write_repository(folder: Path, shards: int) -> None:
    """Write sparse shards of 100 M tokens, one for validation, and a tokenizer."""
    from paramgolf.data.tokenizer.training import train_tokenizer

    names = [f"train_{index:06d}" for index in range(shards)]
    for index, name in enumerate([*names, "val_000000"]):
        path = folder / f"datasets/datasets/fineweb10B_sp8192/fineweb_{name}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        begin = np.array([BOS, 4 + index], "<u2").tobytes()  # no two files are alike
        path.write_bytes(header(SHARD_TOKENS) + begin)
        os.truncate(path, len(header(SHARD_TOKENS)) + 2 * SHARD_TOKENS)
    texts = (f"{number} and {number * number} are numbers" for number in range(2000))
    model = folder / "datasets/tokenizers/fineweb_8192_bpe.model"
    model.parent.mkdir(parents=True)
    model.write_bytes(train_tokenizer(texts, PUBLISHED_VOCABULARY))


def mirror(options: argparse.Namespace) -> list[Row]:
    """Kill a training with all its processes, three times later each time; read the mirror."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    system = fsspec.filesystem("s3")
    system.mkdir("golf")
    lost, unread = [], []
    for seed, seconds in enumerate(KILLED_AFTER):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            content = build("sample", [*LONG, ("train.seed", seed)])
            write_params(root, content)
            (root / "data").mkdir()
            (root / "data/tokens").symlink_to((options.tokens or Path("data/tokens")).resolve())
            kill_later(root, seconds)
            back = root / "back"
            system.get(f"golf/runs/{run_name(content)}", str(back), recursive=True)
            trained = seconds_of(root / LOG)
            unread.append(trained - seconds_of(back / LOG))
            # a run goes on from the checkpoint, however much of the log is there
            lost.append(trained - saved_seconds(back))
            print(f"seed {seed}: {lost[-1]:.1f} s lost", flush=True)
    server.stop()
    return [
        Row("mirror, lost with the machine", max(lost), "s", None, 30.0, "lower"),
        Row("mirror, log lost with the machine", max(unread), "s", None, None, "lower"),
    ]


def saved_seconds(folder: Path) -> float:
    """Return the training seconds of the checkpoint in a folder; 0 where none is whole."""
    for path in folder.glob(".resume/*/state.pt"):
        checkpoint = Checkpoint("train", path.parent.name.removeprefix("train-"))
        checkpoint.path = path
        if saved := checkpoint.load(torch.device("cpu")):
            return float(saved["progress"]["seconds"])
    return 0.0


def kill_later(folder: Path, seconds: float) -> None:
    """Train, and so long after the first step kill the stage and what it started."""
    import psutil

    environment = {**os.environ, "DVC_ROOT": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "stages/train.py")]
    with subprocess.Popen(command, cwd=folder, env=environment) as child:
        while child.poll() is None and not seconds_of(folder / LOG):
            time.sleep(0.1)
        time.sleep(seconds)
        stage = psutil.Process(child.pid)
        for process in (*stage.children(recursive=True), stage):
            process.kill()


def seconds_of(log: Path) -> float:
    """Return the training seconds of the last step in a log."""
    steps = map(json.loads, log.read_text().splitlines()) if log.is_file() else ()
    return max((step.get("seconds", 0.0) for step in steps), default=0.0)


def rehearsals(options: argparse.Namespace) -> list[Row]:
    """Rehearse in an empty folder with no kernel compiled, then start training once more."""
    need_gpus()
    tokens: Path | None = options.tokens
    if tokens is None:
        raise ParamGolfError("part rehearse needs --tokens")
    content = build(RECIPE)
    content = build(RECIPE, shortened(content))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(root / "inductor")
        os.environ["TRITON_CACHE_DIR"] = str(root / "triton")
        (root / "data").mkdir()
        (root / "data/tokens").symlink_to(tokens.resolve())
        cold = [*rehearsal(content, root)]
        training = next(rehearsal(content, root))  # the stages after it are not asked for
    rows = [
        Row(f"rehearse {RECIPE}, cold: {stage.stage}", stage.seconds, "s", None, None, "lower")
        for stage in cold
    ]
    total = sum(stage.seconds for stage in cold)
    start, memory = training.startup_seconds, cold[0].peak_memory_bytes / GIB
    return [
        Row(f"rehearse {RECIPE}, cold: all", total, "s", None, 150.0, "lower"),
        Row(f"start of {RECIPE} after a rehearsal", start, "s", None, 12.0, "lower"),
        Row(f"rehearse {RECIPE}, peak memory of training", memory, "GiB", None, None, "lower"),
        *rows,
    ]


def rehearsal(content: Mapping[str, Any], root: Path) -> Iterator[Rehearsed]:
    """Rehearse, and print each stage as it ends; one that fails ends the benchmark."""
    for stage in rehearse(content, root):
        print(stage, flush=True)
        if stage.reason is not None:
            log = root / FOLDER / f"{stage.stage}.log"
            raise SystemExit(log.read_text()[-4000:] if log.is_file() else 1)
        yield stage


PARTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "doctor": doctor,
    "watch": watch,
    "download": download,
    "mirror": mirror,
    "rehearse": rehearsals,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--tokens", type=Path, metavar="FOLDER", help="for mirror, rehearse")
    parser.add_argument("--shards", type=count, default=80, help="for download")
    room = "where download writes, 200 MB a shard; default: %(default)s"
    parser.add_argument("--work", default="/tmp", metavar="FOLDER", help=room)
    options = parser.parse_args()
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"no such part: {', '.join(unknown)}")
    for name in options.parts or PARTS:
        rows = PARTS[name](options)
        write_results("pod", rows)


if __name__ == "__main__":
    with exit_on_fault():
        main()
