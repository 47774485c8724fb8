"""Get the text, or published token shards, into data/raw, with a manifest of their origin."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paramgolf.data.config import DataConfig
from paramgolf.data.documents import RAW_PATH, Document, write_documents
from paramgolf.data.folders import fresh_folder
from paramgolf.data.manifests import SCHEMA, RawManifest, TextManifest, write_manifest
from paramgolf.data.source.fetch import fetch_documents, fetch_shards
from paramgolf.data.source.sample import sample_documents, versions
from paramgolf.data.source.text_files import DocumentErrors, check_kind, read_file, read_texts
from paramgolf.errors import ParamGolfError
from paramgolf.progress import say


def download(config: DataConfig, folder: str | Path = RAW_PATH) -> RawManifest:
    """Fill `folder` from the source that `config` names; return the manifest written there.

    The manifest's `kind` is `documents`, with {train,val}.jsonl.zst beside it, or `shards`.
    """
    folder = fresh_folder(folder)
    manifest: RawManifest
    if config.source == "hub" and config.hub.kind == "shards":
        manifest = fetch_shards(config.hub, folder)
    else:
        manifest = _write_splits(config, folder)
    write_manifest(folder, manifest)
    return manifest


def _write_splits(config: DataConfig, folder: Path) -> TextManifest:
    errors = DocumentErrors(config.on_error)
    stream, origin = _open_source(config, errors)
    if config.validation_files:
        validation = read_texts(config.validation_files, config.text_field, errors)
    else:
        validation = itertools.islice(stream, config.validation_documents)
    val = write_documents(folder / "val.jsonl.zst", validation)
    train = write_documents(
        folder / "train.jsonl.zst", itertools.islice(stream, config.max_documents)
    )
    if errors.skipped:
        say(f"skipped: {', '.join(f'{n} x {kind}' for kind, n in errors.skipped.items())}")
    for name, split in (("validation", val), ("training", train)):
        if not split.documents:
            raise _too_few(config, name, val.documents + train.documents)
        say(f"{name}: {split.documents} documents, {split.bytes} bytes of text")
    return TextManifest(
        schema=SCHEMA,
        kind="documents",
        source=config.source,
        train=train,
        val=val,
        skipped=dict(errors.skipped),
        validation_files=config.validation_files,
        **origin,
    )


def _open_source(
    config: DataConfig, errors: DocumentErrors
) -> tuple[Iterator[Document], dict[str, Any]]:
    """Return the stream of documents, and the fields of the manifest that tell its origin."""
    if config.source == "sample":
        return sample_documents(), {"versions": versions()}
    if config.source == "files":
        return read_texts(config.files, config.text_field, errors), {"files": config.files}
    check_kind(Path(config.hub.documents_file))  # before gigabytes are fetched
    fetched = fetch_documents(config.hub)
    documents = read_file(fetched.local, fetched.published.path, config.text_field, errors)
    return documents, {
        "repository": config.hub.repository,
        "revision": config.hub.revision,
        "commit": fetched.commit,
        "published": fetched.published,
    }


def _too_few(config: DataConfig, split: str, found: int) -> ParamGolfError:
    expected, fix = "documents in both splits", "give more text"
    if not config.validation_files:
        expected = f"more than data.validation_documents = {config.validation_documents} documents"
        fix = (
            "give more text (a .txt file is one document), lower data.validation_documents, "
            "or name data.validation_files"
        )
    return ParamGolfError(f"no {split} text is left", expected=expected, found=found, fix=fix)
