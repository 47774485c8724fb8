"""The code of each stage as one hash, which is all of the code that dvc.yaml depends on.

Stage `code` writes the hashes whenever a file of the package or of stages/ changed. DVC then runs a
stage only where its own hash differs: an edit that changes nothing reruns nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from paramgolf.code_hash import code_hash
from paramgolf.errors import ParamGolfError
from paramgolf.files import write_text
from paramgolf.imports import PACKAGE, closure

HASHES = Path("artifacts/code")
SCRIPTS = Path("stages")
DATA_SUFFIXES = {".css", ".html"}  # a system's or an editor's stray file reruns nothing
# what a stage's result is made of beside what its script imports: package packs a whole program
ALSO = {"package": (Path("paramgolf/packing/entry.py"),)}


def stages(root: Path = Path()) -> list[str]:
    """Return the names of the stages whose code is hashed, those of their scripts."""
    return sorted({path.stem for path in (root / SCRIPTS).glob("*.py")} - {"code"})


def stage_hash(stage: str, root: Path = Path()) -> str:
    """Return the hash of a stage's script and of all that it imports, SHA-256 in hexadecimal."""
    return scripts_hash((SCRIPTS / f"{stage}.py", *ALSO.get(stage, ())), root)


def scripts_hash(scripts: Iterable[Path], root: Path = Path()) -> str:
    """Return the hash of scripts and of all that they import, SHA-256 in hexadecimal.

    Files of the package that are no modules (templates) count for whoever imports a module of
    their folder.
    """
    modules = {path for script in scripts for path in (script, *closure(script, root))}
    sources = {path.as_posix(): (root / path).read_text(encoding="utf-8") for path in modules}
    digest = hashlib.sha256(code_hash(sources).encode())
    for path in _data_files(modules, root):
        digest.update(f"{path.as_posix()}\0".encode() + (root / path).read_bytes())
    return digest.hexdigest()


def write_hashes(root: Path = Path()) -> None:
    """Write artifacts/code/STAGE.sha256 for every stage."""
    for stage in stages(root):
        write_text(root / HASHES / f"{stage}.sha256", stage_hash(stage, root) + "\n")


def check_hash(stage: str, root: Path = Path()) -> None:
    """Raise ParamGolfError unless stage `code` has seen the code that the stage would run.

    `dvc repro -s STAGE` leaves stage `code` out, so its result would be kept under a hash of
    other code.
    """
    if stage not in (known := stages(root)):
        raise ParamGolfError(f"there is no stage `{stage}`", expected=", ".join(known))
    path = root / HASHES / f"{stage}.sha256"
    expected = stage_hash(stage, root)
    found = path.read_text(encoding="utf-8").strip() if path.is_file() else "no such file"
    if found != expected:
        raise ParamGolfError(
            f"the code of stage {stage} is not the one that was hashed",
            where=path,
            expected=expected,
            found=found,
            fix="run `dvc repro -s code` first",
        )


def _data_files(modules: Iterable[Path], root: Path) -> list[Path]:
    folders = {path.parent for path in modules} - {SCRIPTS, Path(PACKAGE)}
    found = (path for folder in folders for path in (root / folder).rglob("*") if path.is_file())
    kept = (path for path in found if path.suffix in DATA_SUFFIXES)
    return sorted({path.relative_to(root) for path in kept})
