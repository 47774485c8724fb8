"""Every way to score one packed model, in one table: `python benchmarks/scoring.py`.

Reads artifacts/package/model.bin, data/tokens and params.yaml of the folder it is started in, after
a run of the pipeline; the ways to adapt are those of the recipes named in ADAPTED. Writes bits per
byte and seconds of each way, speeds beside their references, the seconds of a mixture's table, and
the ledger's share. The slow ways score `--slow-tokens`, beside the strided score of the same ones.
Speed on documents depends on their lengths, so `lora_documents` and its phases also score the text
cut into documents as long as the contest's. References: the published logs of #1493 (its evaluation
on eight GPUs, a GPU's share) and #1855.
"""

from __future__ import annotations

from paramgolf.process import start_process

start_process()  # before numpy is loaded, whose threads would spin: as in the stages

import argparse
import dataclasses
import functools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tables import Row, check_names, write_results

from paramgolf.bits_per_byte import bits_per_byte
from paramgolf.codec.container import load_package
from paramgolf.data.token_set import TOKENS_PATH
from paramgolf.model.network import Network
from paramgolf.params import load_params
from paramgolf.program import exit_on_fault
from paramgolf.progress import say
from paramgolf.recipes import Params, check, compose
from paramgolf.runtime import Runtime, processes, synchronize
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.scoring.config import MixtureConfig, SlidingConfig, TttConfig
from paramgolf.scoring.evaluation import build_network, score_and_adapt
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.mixture import build_mixture
from paramgolf.scoring.session import Session
from paramgolf.scoring.sliding import score_text
from paramgolf.scoring.stage import PACKAGE_PATH
from paramgolf.scoring.text import Text, find_documents, load_text
from paramgolf.scoring.windows import sliding_windows

RECIPES = Path(__file__).parents[1] / "recipes"
CONTEST = ", documents of the contest's lengths"
DOCUMENTS = f"lora_documents{CONTEST}"
PHASES = f"phases{CONTEST}"
ADAPTED = {
    "sgd": "pr1493",
    "lora_stream": "pr1499",
    "lora_documents": "pr1855",
    DOCUMENTS: "pr1855",
    PHASES: "pr1855",
}
MIXED = {"ngram": "pr1499", "tilt": "pr2135"}
SIZES = ("window", "stride", "batch_windows", "chunk_tokens", "batch_sequences", "max_tokens")
SMALL_ADAPTER = {"rank": 4, "alpha": 7.0}
SMALL_DOCUMENTS = {"batch_documents": 8, "chains": 1, "prefix_documents": 16}
# tokens/s of a GPU
PUBLISHED_SPEEDS = {"sgd": 14_400.0, "lora_documents": 12_500.0, DOCUMENTS: 12_500.0}
PUBLISHED_TOKENS = 40_000_000  # of the contest's validation text, about
# its 50,000 documents hold 47.85 M tokens of CaseOps, the longest twentieth 29 % of them; lengths
# spread as a lognormal distribution does, whose deviation that share gives
DOCUMENT_TOKENS = 957
DOCUMENT_DEVIATION = 1.09


class Watched:
    """Counts the seconds that the ledger takes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in ("score", "score_at", "update", "follow", "merge", "close"):
            setattr(Ledger, name, self._timed(getattr(Ledger, name)))

    def _timed(self, method):
        @functools.wraps(method)
        def timed(*arguments, **options):
            start = time.perf_counter()
            result = method(*arguments, **options)
            self.seconds += time.perf_counter() - start
            return result

        return timed


@dataclasses.dataclass(frozen=True)
class Scored:
    """A way to score: nats of each target, and seconds by part."""

    nats: np.ndarray
    seconds: dict[str, float]
    ledger_seconds: float

    @property
    def total(self) -> float:
        """Seconds without compiling."""
        return sum(value for part, value in self.seconds.items() if part != "compile")


class Bench:
    """One package and one text, scored in every way."""

    def __init__(self, runtime: Runtime, options: argparse.Namespace) -> None:
        self.runtime, self.options = runtime, options
        self.packed = load_package(options.package)
        self.text = load_text(options.data, self.packed.vocab_size, options.tokens)
        count = min(options.slow_tokens, len(self.text))
        self.slow = Text(self.text.tokens[: count + 1], self.text.byte_counts[:count], 1)
        self.contest = cut_as_contest(self.text)
        self.sliding = load_params(SlidingConfig, "eval_sliding")
        self.adapt = load_params(TttConfig, "eval_ttt")
        self.watched = Watched()
        self.found: dict[str, Scored] = {}

    def network(self) -> Network:
        """Build the packed model's network anew."""
        torch._dynamo.reset()  # or the graphs of one way after another exceed their limit
        return build_network(self.packed, self.runtime)

    def bpb(self, name: str, count: int) -> float:
        """Return the bits per byte of the first `count` targets."""
        byte_count = int(self.text_of(name).byte_counts[:count].sum(dtype=np.int64))
        return bits_per_byte(self.found[name].nats[:count].sum(), byte_count)

    def text_of(self, name: str) -> Text:
        """Return the text that a way scores."""
        if name.endswith(CONTEST):
            return self.contest
        return self.slow if name in ADAPTED else self.text

    def measure(self, name: str, score) -> None:
        """Let `score` score a fresh network, and keep what it found."""
        session, before = Session(self.runtime), self.watched.seconds
        ledger = score(self.network(), session)
        ledger.close()
        seconds, spent = dict(session.seconds), self.watched.seconds - before
        self.found[name] = Scored(ledger.nats, seconds, spent)
        parts = ", ".join(f"{part} {value:.1f} s" for part, value in seconds.items())
        say(f"{name}: {self.bpb(name, len(ledger.nats)):.4f} bits per byte, {parts}")
        rows = [*way_rows(self), *target_rows(self)]
        write_results("scoring", rows, show=False)

    def run(self) -> None:
        """Score in every way, or in those asked for."""
        ways = {}
        for name, config in self.sliding_ways():
            ways[name] = lambda n, s, c=config: score_text(n, self.text, c, s)
        for name, config in self.adaptive_ways():
            ways[name] = lambda n, s, c=config, t=name: score_and_adapt(n, self.text_of(t), c, s)
        check_names(self.options.ways or [], ways)
        for name, score in ways.items():
            if name in (self.options.ways or ways):
                self.measure(name, score)

    def sliding_ways(self) -> Iterator[tuple[str, SlidingConfig]]:
        """Yield the ways of eval_sliding, and the mixtures."""
        none = dataclasses.replace(self.sliding.mixture, kind="none")
        plain = {"mode": "strided", "mixture": none, "stride": self.sliding.window}
        yield "plain", dataclasses.replace(self.sliding, **plain)
        for mode in ("strided", "windowed", "documents"):
            rows = self.sliding.batch_windows
            rows = max(1, rows // self.sliding.row_windows) if mode == "windowed" else rows
            changes = {"mode": mode, "mixture": none, "batch_windows": rows}
            yield mode, dataclasses.replace(self.sliding, **changes)
        for kind in MIXED:
            changes = {"mode": "strided", "mixture": published(kind)}
            yield f"strided, {kind}", dataclasses.replace(self.sliding, **changes)

    def adaptive_ways(self) -> Iterator[tuple[str, TttConfig]]:
        """Yield the recipes' ways to adapt, at this project's sizes."""
        sizes = {key: getattr(self.adapt, key) for key in SIZES}
        for name, recipe in ADAPTED.items():
            config = recipe_of(recipe).eval_ttt
            phases = config.documents.phases if name == PHASES else 0
            # the longest twentieth of all documents, as in the contest
            prefix = max(phases, len(find_documents(self.contest)[0]) // 20)
            documents = dataclasses.replace(
                config.documents, phases=phases, prefix_documents=prefix
            )
            adapter = config.adapter
            if self.options.small:
                adapter = dataclasses.replace(adapter, **SMALL_ADAPTER)
                documents = dataclasses.replace(documents, **SMALL_DOCUMENTS)
            none = dataclasses.replace(config.mixture, kind="none")
            changes = {"adapter": adapter, "documents": documents, "mixture": none}
            yield name, dataclasses.replace(config, **sizes, **changes)

    def table_seconds(self, kind: str) -> float:
        """Return the seconds of a mixture's table for a text as long as the contest's."""
        count, tokens = self.options.table_tokens, self.text.tokens
        repeats = -(-count // (len(tokens) - 1))
        # each repeat with other words, or every context would come again
        vocab = int(tokens.max()) + 1
        parts = [
            np.where(tokens[1:] < 2, tokens[1:], (tokens[1:] + 31 * i) % vocab)
            for i in range(repeats)
        ]
        long = np.concatenate([tokens[:1], *parts])[: count + 1].astype(np.uint16)
        text = Text(long, np.ones(count, dtype=np.uint16), 1)
        start = time.perf_counter()
        build_mixture(text, published(kind), Ledger(count), padding=1, device=self.runtime.device)
        synchronize(self.runtime.device)
        return time.perf_counter() - start


def cut_as_contest(text: Text) -> Text:
    """Return `text` with other bounds of documents: their lengths are drawn as the contest's."""
    count, spread = len(text), DOCUMENT_DEVIATION
    drawn = np.random.default_rng(0).lognormal(
        math.log(DOCUMENT_TOKENS) - spread**2 / 2, spread, size=2 + 2 * count // DOCUMENT_TOKENS
    )
    starts = np.cumsum(np.r_[0, np.maximum(drawn, 2)]).astype(np.int64)
    starts = starts[starts < count]
    tokens, byte_counts = text.tokens.copy(), text.byte_counts.copy()
    tokens[tokens == text.bos] = text.bos + 1
    tokens[starts], byte_counts[starts[1:] - 1] = text.bos, 0
    return Text(tokens, byte_counts, text.bos)


def recipe_of(name: str) -> Params:
    return check(compose(name, RECIPES), where=name)


def published(kind: str) -> MixtureConfig:
    return recipe_of(MIXED[kind]).eval_ttt.mixture


def way_rows(bench: Bench) -> Iterator[Row]:
    """Yield every way's score and seconds, as far as they are known."""
    for name, scored in bench.found.items():
        tokens = len(scored.nats)
        alone = name in ("plain", "strided") or name.endswith(CONTEST)
        other = not alone and "strided" in bench.found
        beside = bench.bpb("strided", tokens) if other else None
        figure = f"{name}, {tokens:,} tokens"
        yield Row(figure, bench.bpb(name, tokens), "bits/byte", beside, None, "lower")
        yield Row(f"{figure}: seconds", scored.total, "s", None, None, "lower")
        if bench.runtime.compile:
            compiling = scored.seconds["compile"]
            yield Row(f"{figure}: compiling and warming up", compiling, "s", None, None, "lower")


def target_rows(bench: Bench) -> Iterator[Row]:
    """Yield what has a target, of the ways that were measured."""
    found, count, slow = bench.found, len(bench.text), len(bench.slow)
    config = bench.sliding
    if "strided" in found:
        windows = len(sliding_windows(count, config.window, config.stride))
        speed = windows * config.window / found["strided"].seconds["score"]
        yield Row("strided: tokens read a second", speed, "tokens/s", 1.5e6, 2.6e6, "higher")
    if {"strided", "windowed"} <= found.keys():
        above = bench.bpb("windowed", count) - bench.bpb("strided", count)
        yield Row("windowed: above strided", above, "bits/byte", None, 0.0005, "lower")
        ratio = found["strided"].total / found["windowed"].total
        yield Row("windowed: times faster than strided", ratio, "", None, 20.0, "higher")
    for way, published in PUBLISHED_SPEEDS.items():
        if way in found:
            speed = len(found[way].nats) / found[way].total
            figure = f"{way}: tokens scored a second"
            yield Row(figure, speed, "tokens/s", published, 2 * published, "higher")
    if "lora_documents" in found and "documents" in found:
        gain = bench.bpb("documents", slow) - bench.bpb("lora_documents", slow)
        yield Row("lora_documents: gain over documents", gain, "bits/byte", None, None, "higher")
    share = max(s.ledger_seconds / s.total for s in found.values())
    yield Row("ledger: largest share of the seconds", 100 * share, "%", None, 2.0, "lower")


def table_rows(bench: Bench) -> Iterator[Row]:
    """Make each mixture's table, and yield its seconds."""
    for kind in MIXED:
        figure = f"{kind}: table of {bench.options.table_tokens:,} tokens"
        reference = 175.0 if kind == "tilt" else None  # the records' hints, one thread of C
        yield Row(figure, bench.table_seconds(kind), "s", reference, 10.0, "lower")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, default=PACKAGE_PATH)
    parser.add_argument("--data", type=Path, default=TOKENS_PATH)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="validation tokens")
    parser.add_argument("--slow-tokens", type=int, default=500_000, help="for ways to adapt")
    parser.add_argument("--table-tokens", type=int, default=PUBLISHED_TOKENS)
    parser.add_argument("--small", action="store_true", help="small adapters, for a CPU")
    # not --only: PyTorch copies the word after that into compiled code, which an apostrophe breaks
    parser.add_argument("--ways", nargs="*", metavar="WAY", help="strided, and some other ways")
    options = parser.parse_args()
    if options.ways:
        options.ways.append("strided")  # which all are compared with
    with processes(load_params(RuntimeConfig, "runtime")) as runtime:
        bench = Bench(runtime, options)
        bench.run()
        rows = [*way_rows(bench), *target_rows(bench), *table_rows(bench)]
        write_results("scoring", rows)


if __name__ == "__main__":
    with exit_on_fault():
        main()
