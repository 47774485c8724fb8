"""Experiments as Git keeps them: parameters and metrics of a run.

`dvc exp run` stores a run as a commit under refs/exps. Its files are read from there with one
`git cat-file`. dvc.api.exp_show is not used, for three reasons. For 60 experiments it takes 1.7 s
where this takes 0.2 s (4.8 s the first time, and 1.1 s to import). It drops the stage from the name
of a metric that only one stage has. And it shows a queued task that failed, which has no commit,
with the metrics of the commit that it started from.
"""

from __future__ import annotations

import fnmatch
import io
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lock import foreign_stages, read_lock
from paramgolf.files import parse_object
from paramgolf.metrics import METRICS
from paramgolf.metrics import STAGES as MEASURED
from paramgolf.params import PARAMS_PATH, parse_mapping
from paramgolf.recipes import flatten

LOCK = "dvc.lock"
SEED = "train.seed"
STAGES = (*MEASURED, "verify")  # all that write metrics
FILES = (
    *(PARAMS_PATH.as_posix(), LOCK),
    *((METRICS / f"{stage}.json").as_posix() for stage in STAGES),
)
REFERENCE = re.compile(r"refs/exps/([0-9a-f]{2}/[0-9a-f]{38})/(.+)")
WORKSPACE = "workspace"


@dataclass(frozen=True, slots=True)
class Experiment:
    """A run; `params` and `metrics` by dotted key, such as train.seed and eval_ttt.val_bpb.

    `foreign` holds the stages whose metrics are another run's, and why; `metrics` is without them.
    """

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, Any]
    foreign: Mapping[str, str] = field(default_factory=dict)

    @property
    def seed(self) -> Any:
        """The training seed."""
        return self.params.get(SEED)

    def number(self, metric: str) -> float | int | None:
        """Return a metric where the run has it as a number."""
        value = self.metrics.get(metric)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None


class Source(NamedTuple):
    """Where an experiment is read: a commit, or None for the working folder."""

    name: str
    commit: str | None


HERE = Source(WORKSPACE, None)


def find(wanted: Sequence[str], root: Path = Path(), *, everywhere: bool = False) -> list[Source]:
    """Return what to read for `wanted`, each source once.

    A wanted text is `workspace`, the name of an experiment (with * and ?, several), or any revision
    that Git knows. Nothing wanted: the experiments of HEAD, or `everywhere` of every commit, and
    the workspace; of one name several have their commit beside it.
    """
    commits = list_experiments(root)
    head = _git(["rev-parse", "--verify", "--quiet", "HEAD"], root).strip()
    here = {pair: commit for pair, commit in commits.items() if pair[0] == head}
    if not wanted:
        return [*_told_apart(commits if everywhere else here), HERE]
    names = {name: commit for (_, name), commit in (*commits.items(), *here.items())}
    sources: dict[Source, None] = {}
    for text in wanted:
        matches = [name for name in sorted(names) if fnmatch.fnmatchcase(name, text)]
        if text == WORKSPACE:
            sources[HERE] = None
        elif matches:
            sources |= dict.fromkeys(Source(name, names[name]) for name in matches)
        else:
            sources[Source(text, _resolve(text, names, root))] = None
    return list(sources)


def list_experiments(root: Path) -> dict[tuple[str, str], str]:
    """Return the commit of each experiment by (commit that it began from, name)."""
    text = _git(["for-each-ref", "--format=%(objectname) %(refname)", "refs/exps"], root)
    commits = {}
    for line in text.splitlines():
        commit, reference = line.split(" ", 1)
        if match := REFERENCE.fullmatch(reference):
            commits[match[1].replace("/", ""), match[2]] = commit
    return commits


def _told_apart(commits: Mapping[tuple[str, str], str]) -> list[Source]:
    """Return a source of each experiment, by its name; where that comes twice, with its commit."""
    counts = Counter(name for _, name in commits)
    return [
        Source(name if counts[name] == 1 else f"{name} ({commit[:8]})", commit)
        for (_, name), commit in sorted(commits.items(), key=lambda item: item[0][::-1])
    ]


def _resolve(text: str, names: Iterable[str], root: Path) -> str:
    commit = _git(["rev-parse", "--verify", "--quiet", f"{text}^{{commit}}"], root, check=False)
    if not commit.strip() or text.startswith("-"):
        known = ", ".join([*sorted(names), WORKSPACE])
        fix = f"name one of: {known}; or a commit, branch or tag"
        raise ParamGolfError(f"there is no experiment `{text}`", fix=fix)
    return commit.strip()


def read(sources: Sequence[Source], root: Path = Path()) -> list[Experiment]:
    """Return the experiments of some sources; a run without parameters is an error."""
    commits = [source.commit for source in sources if source.commit]
    answers = _blobs([f"{c}:./{path}" for c in commits for path in FILES], root)
    experiments = []
    for source in sources:
        if source.commit is None:
            contents = [_read_file(root / path) for path in FILES]
        else:
            contents = [next(answers) for _ in FILES]
        experiments.append(parse(source.name, contents))
    return experiments


def parse(name: str, contents: Sequence[bytes | None]) -> Experiment:
    """Make an experiment of the contents of FILES; None stands for a file that does not exist."""
    params, lock, *metrics = contents
    if params is None:
        fix = "choose a commit of this project"
        raise ParamGolfError(f"`{name}` has no {PARAMS_PATH}", fix=fix)
    flat = flatten(parse_mapping(params, f"{name}: {PARAMS_PATH}"))
    foreign = {} if lock is None else foreign_stages(read_lock(lock, f"{name}: {LOCK}"), flat)
    values: dict[str, Any] = {}
    for stage, content in zip(STAGES, metrics, strict=True):
        if content is not None and stage not in foreign:
            where = f"{name}: {METRICS / stage}.json"
            values |= flatten(parse_object(content, where), f"{stage}.")
    return Experiment(name, flat, values, foreign)


def _blobs(requests: Sequence[str], root: Path) -> Iterator[bytes | None]:
    """Yield the content of each `COMMIT:PATH`, None where there is none, by one git process."""
    if not requests:
        return
    command = ["git", "cat-file", "--batch"]
    text = "".join(f"{request}\n" for request in requests).encode()
    done = subprocess.run(command, cwd=root, input=text, capture_output=True, check=True)
    output = io.BytesIO(done.stdout)
    for header in output:
        size = header.split()[-1]  # a newline follows the content
        yield None if size == b"missing" else output.read(int(size) + 1)[:-1]


def read_outputs(commit: str | None, paths: Iterable[Path], root: Path) -> Iterator[bytes | None]:
    """Yield files that stages wrote, of the working folder or by DVC's cache; None: not at hand."""
    if commit is None:
        yield from (_read_file(root / path) for path in paths)
        return
    from dvc.api import DVCFileSystem  # 0.4 s, and half a second per commit
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexDirError

    files = DVCFileSystem(str(root.resolve()), rev=commit)
    for path in paths:
        try:
            yield bytes(files.read_bytes(path.as_posix()))
        except (OSError, DvcException, DataIndexDirError):  # neither in the cache nor on a remote
            yield None


def _read_file(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _git(arguments: Sequence[str], root: Path, *, check: bool = True) -> str:
    try:
        result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        raise ParamGolfError("git is not installed", fix="install git") from None
    if check and result.returncode:
        found = result.stderr.strip() or "no commit yet"
        fix = "run in the project's folder, with a commit"
        raise ParamGolfError("Git cannot read this folder", found=found, fix=fix)
    return result.stdout
