"""What theory leaves to the quantizer: `python benchmarks/headroom.py [--folder DIR]`.

Needs a folder with a recipe's params.yaml and artifacts/train; Hessians and sensitivities are read
from artifacts/calibrate, or gathered from data/tokens where there are none. All figures are bits
per weight, of each matrix under recipe best's setting of quantize:

    columns     0.5 log2(AM / GM of L_jj^2): what steps in proportion to 1 / L_jj save over equal
                ones, with columns in their natural order and by the Hessian's diagonal. L_jj^2 is
                what GPTQ leaves of column j's error, 1 / U_jj^2 (quant.gptq)
    rows        0.5 log2(AM / GM of c_i s_i^2), c_i what an error in row i costs: what steps in
                proportion to c_i^-1/2 save over those of the grid, and over balanced ones
    contexts    by how much the integers' code length falls if a coder knows the deviation of each
                row, of each column, of both, or of columns and, of rows, only the scale
    trellis     0.5 log2(2 pi e D / step^2), D the mean squared error of a column as it is rounded:
                0.2546 for rounding, 0 for the best possible code
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from projects import ROOT
from quantizer import SENSITIVITY_SEQUENCES
from tables import RESULTS, made_by
from torch import Tensor

from paramgolf.data.token_set import open_tokens
from paramgolf.files import write_json, write_text
from paramgolf.params import read_yaml
from paramgolf.progress import say
from paramgolf.quant.calibrate import HESSIANS_PATH, collect
from paramgolf.quant.gptq import factorize
from paramgolf.quant.quantize import prepare
from paramgolf.quant.scales import choose_precisions
from paramgolf.quant.solved import Family, Solved, solve_family
from paramgolf.quant.trained import load_tensors, load_trained
from paramgolf.recipes import Params, check, compose
from paramgolf.runtime import Runtime, processes

COMMAND = "python benchmarks/headroom.py"
COLUMNS = {
    "columns_natural": "columns, natural order",
    "columns_by_diagonal": "columns, by diagonal",
    "rows_grid": "rows, of the grid",
    "rows_now": "rows, as they are",
    "code_bits": "code length",
    "given_rows": "saved by rows",
    "given_columns": "by columns",
    "given_both": "by both",
    "given_scales": "by columns and scales",
    "trellis": "to the best code",
}
ROUNDS = 12  # of alternating fits of rows and columns


def spread(values: Tensor) -> Tensor:
    """Return 0.5 log2(AM / GM) of positive values along the last dimension, bits."""
    values = values.double()
    return 0.5 * (values.mean(-1).log2() - values.log2().mean(-1))


def matrices(params: Params, runtime: Runtime) -> list[dict[str, Any]]:
    """Return a record of every matrix of the checkpoint in this folder."""
    trained = load_trained()
    if HESSIANS_PATH.is_file():
        hessians = load_tensors(HESSIANS_PATH, fix="dvc repro calibrate")
    else:
        count = min(SENSITIVITY_SEQUENCES, params.calibrate.sequences)
        text = replace(params.calibrate, sensitivity_sequences=count)
        hessians, _ = collect(trained, open_tokens(), text, runtime)
    best = check(compose("best", ROOT / "recipes"), where="best").quantize
    config = replace(best, column_steps=False)  # what equal steps of columns leave
    families = prepare(trained, hessians, config, runtime.device)
    grid = choose_precisions(families, trained.model, replace(config, balance=0.0))
    now = choose_precisions(families, trained.model, config)
    records = []
    for family in families:
        natural = factorize(
            family.hessian, damping=config.damping, act_order=False, family=family.name
        )
        columns = [spread(_left(factors.upper)) for factors in (natural, family.factors)]
        for solved in solve_family(family, now, config):
            costs = family.sensitivity[solved.name] * _left(family.factors.upper).mean(1)[:, None]
            priced = [costs * p[solved.name].scale.double() ** 2 for p in (grid, now)]
            rows = [spread(cost) for cost in priced]
            found = [*columns, *rows, *code_lengths(solved), trellis_gap(solved, family)]
            table = dict(zip(COLUMNS, found, strict=True))
            table |= {"cost_grid": priced[0].mean(1), "cost_now": priced[1].mean(1)}
            for layer in range(len(solved.weight)):
                figures = {key: float(value[layer]) for key, value in table.items()}
                weights = solved.weight[layer].numel()
                records.append({"name": solved.name, "layer": layer, "weights": weights, **figures})
    return records


def _left(upper_NCC: Tensor) -> Tensor:
    return upper_NCC.diagonal(dim1=1, dim2=2).double().pow(-2)


def code_lengths(solved: Solved) -> list[Tensor]:
    """Return bits per integer with one deviation for the matrix, and what knowing more saves."""
    integers = solved.integers.double()
    step = 2 if solved.trellis else 1
    variance = integers.square()
    whole = variance.mean((1, 2), keepdim=True)
    rows, columns = (variance.mean(dim, keepdim=True) / whole for dim in (2, 1))
    scale = solved.tensors[f"{solved.name}.scales"].double().unsqueeze(-1)
    known = scale.pow(-2) / scale.pow(-2).mean(1, keepdim=True)
    both = _fit_columns(variance, rows)
    for _ in range(ROUNDS):
        both = (variance / both[1]).mean(2, keepdim=True), both[1]
        both = _fit_columns(variance, both[0])
    lengths = [
        _normal_bits(integers, guess, step)
        for guess in (
            whole,
            whole * rows,
            whole * columns,
            both[0] * both[1],
            math.prod(_fit_columns(variance, known)),
        )
    ]
    return [lengths[0], *(lengths[0] - length for length in lengths[1:])]


def _fit_columns(variance: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    rows = rows.clamp_min(1e-6)
    return rows, (variance / rows).mean(1, keepdim=True).clamp_min(1e-6)


def _normal_bits(integers: Tensor, variance: Tensor, step: int) -> Tensor:
    """Return the mean bits of integers on a lattice of `step` under normal distributions, [N]."""
    deviation = variance.clamp_min(0.05).sqrt()
    high, low = ((integers + side * step / 2) / deviation for side in (1, -1))
    # of the tail's side, where differences of numbers near 1 would lose their digits
    high, low = torch.where(integers > 0, -low, high), torch.where(integers > 0, -high, low)
    chances = torch.special.ndtr(high) - torch.special.ndtr(low)
    return -chances.clamp_min(1e-9).log2().mean((1, 2))


def trellis_gap(solved: Solved, family: Family) -> Tensor:
    """Return how far a column's rounding is from the best possible code, [N].

    E = Err U, so that Err = E U^-1; a column's own error is Err_j U_jj.
    """
    order = family.factors.order.unsqueeze(1)
    error = (solved.weight - solved.dequantized).double()
    alive = error.masked_fill(family.factors.dead.unsqueeze(1), 0.0)
    sorted_error = alive.gather(2, order.expand_as(alive))
    upper = family.factors.upper.double()
    own = torch.linalg.solve_triangular(upper, sorted_error, upper=True, left=False)
    own = own * upper.diagonal(dim1=1, dim2=2).unsqueeze(1)
    step = solved.tensors[f"{solved.name}.scales"].double().unsqueeze(-1) * (1 + solved.trellis)
    return 0.5 * (2 * math.pi * math.e * (own / step).square().mean((1, 2))).log2()


def table(records: list[dict[str, Any]]) -> str:
    """Return the means of each parameter's matrices, and of all by their weights, in Markdown."""
    names = list(dict.fromkeys(record["name"] for record in records))
    lines = ["| parameter | " + " | ".join(COLUMNS.values()) + " |", "|---" * 11 + "|"]
    for name in [*names, "all"]:
        own = [record for record in records if name in (record["name"], "all")]
        total = sum(record["weights"] for record in own)
        means = (sum(r[key] * r["weights"] for r in own) / total for key in COLUMNS)
        lines.append(f"| {name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    grid, now = (over_all_rows(records, key) for key in ("cost_grid", "cost_now"))
    lines += ["", f"Over the rows of all matrices: {grid:.3f} of the grid, {now:.3f} as they are."]
    return "\n".join(lines) + "\n"


def over_all_rows(records: list[dict[str, Any]], key: str) -> float:
    """Return 0.5 log2(AM / GM) of the costs of all rows of all matrices, by their weights."""
    total = sum(record["weights"] for record in records)
    mean = sum(record[key] * record["weights"] for record in records) / total
    # a matrix's mean logarithm is that of its mean, less its own spread
    logs = sum(
        (math.log2(r[key]) - 2 * r[key.replace("cost", "rows")]) * r["weights"] for r in records
    )
    return 0.5 * (math.log2(mean) - logs / total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(), help="where a recipe was trained")
    options = parser.parse_args()
    os.chdir(options.folder)
    params = check(read_yaml("params.yaml"), where="params.yaml")
    with processes(replace(params.runtime, processes=1)) as runtime:
        records = matrices(params, runtime)
    made = made_by(COMMAND)
    write_json(RESULTS / "headroom.json", {**made, "matrices": records})
    text = f"`{COMMAND}` on {made['device']}, torch {made['torch']}; bits per weight\n\n"
    write_text(RESULTS / "headroom.md", text + table(records))
    say(table(records))


if __name__ == "__main__":
    main()
