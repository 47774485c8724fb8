"""Speed and memory of retokenize: `python benchmarks/retokenize.py CORPUS.jsonl.xz`.

The corpus (any file that data.files takes) is repeated until it holds the asked bytes of text, a
tokenizer is trained on it, then all of it is encoded by one process a core. Memory is the resident
size of all processes together, sampled; pages that they share count once for each.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from tables import Row, write_results

from paramgolf.data.documents import Document, write_documents
from paramgolf.data.manifests import SCHEMA, TextManifest, write_manifest
from paramgolf.data.source.text_files import DocumentErrors, read_texts

SAMPLE_SECONDS = 0.05
WORK = """
import sys
from paramgolf.data.config import TokenizerConfig
from paramgolf.data.documents import read_lines
from paramgolf.data.retokenize import retokenize
from paramgolf.data.tokenizer.training import draw_texts, train_tokenizer
work, raw, size, text_bytes, training_bytes, workers = sys.argv[1:]
if __name__ == "__main__" and work == "train":
    lines = read_lines(f"{raw}/train.jsonl.zst")
    total, limit = int(text_bytes), int(training_bytes)
    model = train_tokenizer(draw_texts(lines, total_bytes=total, limit_bytes=limit), int(size))
    open(f"{raw}/given.model", "wb").write(model)
elif __name__ == "__main__":
    config = TokenizerConfig(source="file", path=f"{raw}/given.model", vocab_size=int(size),
                             transform="none", training_bytes=1,
                             shard_tokens=100_000_000)
    retokenize(config, int(workers), raw, f"{raw}/../tokens")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("--megabytes", type=int, default=500, help="10^6 bytes of text")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--training-bytes", type=int, default=100_000_000)
    parser.add_argument("--workers", type=int, default=0, help="0: one a core")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        start = time.perf_counter()
        size = write_raw(arguments.corpus, raw, arguments.megabytes * 10**6)
        write_seconds = time.perf_counter() - start
        (Path(folder) / "work.py").write_text(WORK)
        options = [raw, arguments.vocab_size, size, arguments.training_bytes, arguments.workers]
        train = measure([sys.executable, f"{folder}/work.py", "train", *map(str, options)])
        before = cpu_seconds()
        encode = measure([sys.executable, f"{folder}/work.py", "encode", *map(str, options)])
        encode_cpu = cpu_seconds() - before
    megabytes = size / 1e6
    rows = [
        Row("retokenize, text encoded", megabytes, "MB", None, None, "higher"),
        Row("retokenize", megabytes / encode[0], "MB/s", None, 5.0, "higher"),
        Row(
            "retokenize, for each core it had", megabytes / encode_cpu, "MB/s", None, 2.5, "higher"
        ),
        Row("retokenize, memory of all processes", encode[1] / 2**20, "MiB", None, 1024.0, "lower"),
        Row("training the tokenizer", train[0], "s", None, None, "lower"),
        Row("training the tokenizer, memory", train[1] / 2**20, "MiB", None, 1024.0, "lower"),
        Row("writing data/raw", megabytes / write_seconds, "MB/s", None, None, "higher"),
    ]
    write_results("pipeline", rows, "python benchmarks/retokenize.py CORPUS.jsonl.xz")


def write_raw(corpus: str, folder: Path, size: int) -> int:
    """Write `size` bytes of training text, and the corpus's first 100 documents as validation."""
    folder.mkdir()
    val = itertools.islice(read_texts([corpus], "text", DocumentErrors("stop")), 100)
    manifest = TextManifest(
        schema=SCHEMA,
        kind="documents",
        source="files",
        val=write_documents(folder / "val.jsonl.zst", val),
        train=write_documents(folder / "train.jsonl.zst", repeat(corpus, size)),
        skipped={},
        validation_files=(),
        files=(corpus,),
    )
    write_manifest(folder, manifest)
    return manifest.train.bytes


def repeat(corpus: str, size: int) -> Iterator[Document]:
    """Yield the corpus's documents again and again until they hold `size` bytes of text."""
    for turn in itertools.count():
        for document in read_texts([corpus], "text", DocumentErrors("stop")):
            yield Document(f"{turn}/{document.name}", document.text)
            size -= len(document.text.encode())
            if size <= 0:
                return


def measure(command: list[str]) -> tuple[float, int]:
    """Run a command; return its seconds and the peak of the resident bytes of all its processes."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command) as child:
        process = psutil.Process(child.pid)
        while child.poll() is None:
            peak = max(peak, resident(process))
            time.sleep(SAMPLE_SECONDS)
    if child.returncode:
        raise SystemExit(child.returncode)
    return time.perf_counter() - start, peak


def cpu_seconds() -> float:
    """Return the processor seconds of all processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def resident(process: psutil.Process) -> int:
    total = 0
    try:
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # it ended between the listing and the look
    return total


if __name__ == "__main__":
    main()
