"""What a person says of a submission; no file of the pipeline knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RECORD, NON_RECORD = "10min_16mb", "non_record_16mb"
TRACKS = (RECORD, NON_RECORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Title, people, track (one of TRACKS), and whose work a technique is; empty: not given."""

    name: str
    author: str
    github_id: str
    blurb: str
    track: str
    credits: Mapping[str, str]
