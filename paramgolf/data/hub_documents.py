"""Published documents, to be tokenised here: one file of a Hugging Face repository."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from paramgolf.data.config import HubConfig
from paramgolf.data.hub import Repository


def fetch_documents(config: HubConfig) -> tuple[Path, dict[str, Any]]:
    """Fetch `documents_file`; return its local path and what the manifest says of its origin.

    A bare name is found in whatever folder of the repository it lies, the uppermost first.
    """
    repository = Repository(config.repository, config.revision)
    paths = [p for p in repository.files if PurePosixPath(p).name == config.documents_file]
    path = min(paths, key=lambda p: (p.count("/"), p), default=config.documents_file)
    local = repository.fetch(path)
    file = repository.files[path]
    origin = {
        "repository": config.repository,
        "revision": config.revision,
        "commit": repository.commit,
        "published": {"path": path, "bytes": file.size, "sha256": file.sha256},
    }
    return local, origin
