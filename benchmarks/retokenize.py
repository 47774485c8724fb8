"""Speed and memory of retokenize: `python benchmarks/retokenize.py CORPUS.jsonl.xz`.

The corpus (any file that data.files takes) is repeated until it holds the asked bytes of text, a
tokenizer is trained on it, then all of it is encoded by one process a core. Memory is the resident
size of all processes together, sampled; pages that they share count once for each.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from child import measured
from tables import Row, write_results

from paramgolf.arguments import count
from paramgolf.data.documents import Document, write_documents
from paramgolf.data.manifests import SCHEMA, TextManifest, write_manifest
from paramgolf.data.source.text_files import DocumentErrors, read_texts
from paramgolf.program import exit_on_fault

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
    parser.add_argument("--megabytes", type=count, default=500, help="10^6 bytes of text")
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
        train, encode = (
            measured([f"{folder}/work.py", work, *map(str, options)])
            for work in ("train", "encode")
        )
    megabytes = size / 1e6
    a_core = megabytes / encode.processor
    memory, training_memory = (one.memory / 2**20 for one in (encode, train))
    rows = [
        Row("retokenize, text encoded", megabytes, "MB", None, None, "higher"),
        Row("retokenize", megabytes / encode.seconds, "MB/s", None, 5.0, "higher"),
        Row("retokenize, for each core it had", a_core, "MB/s", None, 2.5, "higher"),
        Row("retokenize, memory of all processes", memory, "MiB", None, 1024.0, "lower"),
        Row("training the tokenizer", train.seconds, "s", None, None, "lower"),
        Row("training the tokenizer, memory", training_memory, "MiB", None, 1024.0, "lower"),
        Row("writing data/raw", megabytes / write_seconds, "MB/s", None, None, "higher"),
    ]
    write_results("pipeline", rows)


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


if __name__ == "__main__":
    with exit_on_fault():
        main()
