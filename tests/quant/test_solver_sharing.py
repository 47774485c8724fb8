"""Families solved by two processes against one: the same files."""

from __future__ import annotations

import json
import os

from process_case import ALONE, joined, run_ranks
from quantize_case import CPU, make_config, write_inputs

from paramgolf.quant.quantize import prepare, quantize
from paramgolf.quant.sharing import deal

CONFIG = {"fit_bytes": 100_000, "fit_code_bytes": 40_000}


def test_the_largest_families_are_dealt_first(trained, hessians):
    families = prepare(trained, hessians, make_config(), CPU)
    sizes = {f.name: sum(w.numel() for w in f.weights.values()) for f in families}
    assert set(deal(families, 1).values()) == {0}
    owner = deal(families, 2)
    loads = [sum(sizes[name] for name, rank in owner.items() if rank == r) for r in (0, 1)]
    assert owner.keys() == sizes.keys()
    assert max(loads) <= sum(sizes.values()) / 2 + min(sizes.values())
    assert len(set(deal(families, 9).values())) == len(families)


def work(rank, folder):
    os.chdir(folder)
    with joined(rank, folder) as runtime:
        quantize(make_config(**CONFIG), runtime)


def test_two_processes_write_what_one_does(trained, hessians, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path, trained, hessians)
    quantize(make_config(**CONFIG), ALONE)
    files = {p: p.read_bytes() for p in (tmp_path / "artifacts/quantize").iterdir()}
    assert len(json.loads(files[tmp_path / "artifacts/quantize/report.json"])["fit"]["trials"]) > 1
    for path in files:
        path.unlink()
    run_ranks(work, str(tmp_path))
    assert {p: p.read_bytes() for p in files} == files
