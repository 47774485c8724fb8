"""A folder under Git, with the commands that a user would type in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


class Repository:
    """A folder in which commands are given, those of this environment first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        binaries = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
        }

    def run(self, *command: str, code: int | None = 0, text: str | None = None) -> str:
        """Run a command that reads `text` and ends with `code`; return all that it says."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert code is None or done.returncode == code, done.stdout[-4000:]
        return done.stdout

    def begin(self) -> None:
        """Put the folder under Git."""
        self.run("git", "init", "-q")
        self.identify()

    def identify(self) -> None:
        """Tell Git who commits."""
        self.run("git", "config", "user.name", "test")
        self.run("git", "config", "user.email", "test@example.com")

    @property
    def head(self) -> str:
        """The commit that is checked out."""
        return self.run("git", "rev-parse", "HEAD").strip()

    def commit(self, message: str, *paths: str) -> None:
        """Commit what lies there, or at some paths."""
        self.run("git", "add", "-A", *paths)
        self.run("git", "commit", "-qm", message)

    def make_experiments(self, *seeds: int) -> None:
        """Let DVC run what dvc.yaml says once for each seed: experiments made-SEED."""
        self.run("dvc", "init", "-q")
        self.commit("plan")
        for seed in seeds:
            words = "exp", "run", "-q", "-n", f"made-{seed}", "-S", f"train.seed={seed}"
            self.run("dvc", *words)
