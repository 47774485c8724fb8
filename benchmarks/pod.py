"""From a bare machine to a submission: `python benchmarks/pod.py [PART ...]`.

rehearse: `paramgolf rehearse` of pr1493 with nothing compiled, and the start of training after it;
attention: each attention that is there, forward and backward, on rows and on documents. Both need a
GPU; rehearse reads --tokens, a folder of shards of the recipe's vocabulary, as data/tokens.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tables import Row, write_results

from paramgolf.experiments.rehearsal import FOLDER, Rehearsed, rehearse, shortened
from paramgolf.recipes import build

RECIPE = "pr1493"
GIB = 2**30


def rehearsals(options: argparse.Namespace) -> list[Row]:
    """Rehearse twice in an empty folder, with an empty cache of kernels at first."""
    tokens: Path | None = options.tokens
    if tokens is None:
        raise SystemExit("rehearse needs --tokens")
    content = build(RECIPE)
    content = build(RECIPE, shortened(content))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(root / "inductor")
        os.environ["TRITON_CACHE_DIR"] = str(root / "triton")
        (root / "data").mkdir()
        (root / "data/tokens").symlink_to(tokens.resolve())
        cold, warm = (rehearsal(content, root) for _ in range(2))
    rows = [
        Row(f"rehearse {RECIPE}, {name}: {stage.stage}", stage.seconds, "s", None, None, "lower")
        for name, stages in (("cold", cold), ("warm", warm))
        for stage in stages
    ]
    total = sum(stage.seconds for stage in cold)
    start, memory = warm[0].startup_seconds, cold[0].peak_memory_bytes / GIB
    return [
        Row(f"rehearse {RECIPE}, cold: all", total, "s", None, 150.0, "lower"),
        Row(f"start of {RECIPE} after a rehearsal", start, "s", None, 12.0, "lower"),
        Row(f"rehearse {RECIPE}, peak memory of training", memory, "GiB", None, None, "lower"),
        *rows,
    ]


def rehearsal(content: Mapping[str, Any], root: Path) -> list[Rehearsed]:
    """Rehearse, and print each stage as it ends; one that fails ends the benchmark."""
    stages = []
    for stage in rehearse(content, root):
        print(stage, flush=True)
        if stage.reason is not None:
            log = root / FOLDER / f"{stage.stage}.log"
            raise SystemExit(log.read_text()[-4000:] if log.is_file() else 1)
        stages.append(stage)
    return stages


def attentions(_: argparse.Namespace) -> list[Row]:
    """Time each attention, as benchmarks/train_speed.py does."""
    from train_speed import attention_rows

    return attention_rows()


PARTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "rehearse": rehearsals,
    "attention": attentions,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--tokens", type=Path, metavar="FOLDER", help="for rehearse")
    options = parser.parse_args()
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"no such part: {', '.join(unknown)}")
    for name in options.parts or PARTS:
        rows = PARTS[name](options)
        write_results("pod", rows, f"python benchmarks/pod.py {name}")


if __name__ == "__main__":
    main()
