"""Mutants of files that come from outside: none may crash a reader, hang it or fill the memory.

    python benchmarks/fuzz.py                          # all targets, at length
    python benchmarks/fuzz.py --only model.bin --count 500

Readers run in processes of their own, whose memory is measured and who are ended after
LIMIT_SECONDS of the processor. A mutant is refused by a ParamGolfError or read; anything else is a
fault, of which the exit code is 1. What comes of all mutants of a target goes to
benchmarks/results/fuzz.json; a mutant follows from its number, so that one that is at fault can be
made again.
"""

from __future__ import annotations

from paramgolf.process import start_process

start_process()  # before numpy is loaded, whose threads would spin: as in the stages

import argparse
import functools
import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_files
import fuzz_models
import torch
from tables import given_command, made_by

from paramgolf.arguments import count
from paramgolf.files import read_json, write_json, write_text
from paramgolf.process import cores
from paramgolf.program import exit_on_fault
from paramgolf.progress import track

OUT = Path(__file__).parent / "results/fuzz.json"
LIMIT_SECONDS, LIMIT_BYTES = 10, 2**30
TOGETHER = 25  # mutants of one process: to start one takes longer than to read a mutant
SAVED_EVERY = 20  # such processes


@dataclass(frozen=True)
class Target:
    """A kind of file: how many mutants to try, how one is made, and how it is read.

    `read` says in a word what came of a mutant, and raises where that is a fault.
    """

    count: int
    mutant: Callable[[int], bytes]
    read: Callable[[bytes], str]


TARGETS = {"model.bin": Target(10_000, fuzz_models.mutant, fuzz_models.read)} | {
    kind: Target(
        2_000,
        functools.partial(fuzz_files.mutant, kind),
        functools.partial(fuzz_files.read, kind),
    )
    for kind in fuzz_files.KINDS
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=TARGETS, help="one target")
    parser.add_argument("--count", type=count, help="mutants of each target")
    parser.add_argument("--jobs", type=count, default=cores(), help="readers at once")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # threads do not live on in a forked process
    results = read_json(OUT) if OUT.is_file() else {}
    names = [arguments.only] if arguments.only else [*TARGETS]
    whole = arguments.count is None and arguments.first == 0
    for name in names:
        target = TARGETS[name]
        numbers = range(arguments.first, arguments.first + (arguments.count or target.count))
        for so_far in fuzz(name, target, numbers, arguments.jobs):
            results[name] = so_far | made_by(given_command())
            if whole:
                write_json(OUT, results)
                write_text(OUT.with_suffix(".md"), markdown(results))
        print(name, json.dumps(results[name]))
    if any(results[name]["faults"] for name in names):
        raise SystemExit(1)


def markdown(results: dict[str, Any]) -> str:
    """Return the table of the results."""
    devices, versions = (
        "; ".join(dict.fromkeys(found[key] for found in results.values()))
        for key in ("device", "torch")
    )
    lines = [f"`python benchmarks/fuzz.py` on {devices}, torch {versions}", ""]
    lines += [
        "| file | mutants | outcomes | most seconds | most MiB | faults |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        outcomes = ", ".join(f"{n:,} {word}" for word, n in sorted(found["outcomes"].items()))
        figures = f"{found['seconds_most']:.2f} | {found['bytes_most'] / 2**20:,.0f}"
        line = (
            f"| {name} | {found['mutants']:,} | {outcomes} | {figures} | {len(found['faults'])} |"
        )
        lines.append(line)
    return "\n".join(lines) + "\n"


def fuzz(name: str, target: Target, numbers: range, jobs: int) -> Iterator[dict[str, Any]]:
    """Read mutants; yield how many came to what so far, the slowest, the largest, and the faults.

    The last is of them all; those before it are of a run that may be broken off.
    """
    target.read(target.mutant(numbers.start))  # what is made once is made before the forks
    outcomes: Counter[str] = Counter()
    faults, slowest, largest = [], 0.0, 0
    batches = [numbers[i : i + TOGETHER] for i in range(0, len(numbers), TOGETHER)]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        examined = pool.map(functools.partial(in_child, target), batches)
        for done, batch in enumerate(track(examined, name, total=len(batches)), 1):
            for found in batch:
                outcomes[found["outcome"]] += 1
                slowest, largest = max(slowest, found["seconds"]), max(largest, found["bytes"])
                if found["outcome"] == "fault" or found["bytes"] > LIMIT_BYTES:
                    faults.append(found)
            if done % SAVED_EVERY == 0 or done == len(batches):
                yield {
                    "mutants": outcomes.total(),
                    "outcomes": dict(outcomes),
                    "seconds_most": slowest,
                    "bytes_most": largest,
                    "faults": faults,
                }


def in_child(target: Target, numbers: range) -> list[dict[str, Any]]:
    """Read mutants in a process of its own; what it did not come to tell ended it."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        with os.fdopen(send, "w") as pipe:
            for number in numbers:
                print(json.dumps(examine(target, number)), file=pipe, flush=True)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        found = [json.loads(line) for line in pipe]
    _, status = os.waitpid(child, 0)
    if len(found) < len(numbers):
        ended = {"number": numbers[len(found)], "outcome": "fault", "bytes": 0}
        ended |= {"seconds": float(LIMIT_SECONDS), "what": f"the process ended with {status}"}
        found.append(ended)
        found += in_child(target, numbers[len(found) :]) if len(found) < len(numbers) else []
    return found


def examine(target: Target, number: int) -> dict[str, Any]:
    """Read one mutant; a signal ends the process of one that takes too long.

    Seconds are of the processor, whatever else the machine does; bytes are the most that were
    resident.
    """
    content = target.mutant(number)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
    start, what = time.process_time(), None
    try:
        outcome = target.read(content)
    except Exception as error:  # the very thing that is looked for
        outcome, what = "fault", repr(error)[:500]
    seconds = time.process_time() - start
    signal.setitimer(signal.ITIMER_PROF, 0)
    found = {"number": number, "outcome": outcome, "seconds": seconds, "bytes": peak_bytes()}
    return found if what is None else {**found, "what": what}


def peak_bytes() -> int:
    """Return the most bytes that were resident since the peak was forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(peak.split()[1])


if __name__ == "__main__":
    with exit_on_fault():
        main()
