"""Hessians of the published systems: of given text, as their own code sums them."""

from __future__ import annotations

import pytest
import torch
from process_case import ALONE
from published_case import SYSTEMS, VOCAB, distance, given, shrunk, tensors
from torch import Tensor

from paramgolf.quant.calibrate import load_network
from paramgolf.quant.hessian import gather
from paramgolf.quant.trained import Trained

TOLERANCE = 1e-5
LENGTH = 64


def as_published(name: str, hessian_NCC: Tensor) -> Tensor:
    """Ours, the mean of x x^T over tokens, as the system scales it.

    A factor of a whole Hessian changes nothing that is made of it.
    """
    match name:
        case "pr1204":  # the sum over one sequence, on average, and its first damping
            total = LENGTH * hessian_NCC
            mean = total.diagonal(dim1=1, dim2=2).mean(1)
            return total + 0.01 * mean[:, None, None] * torch.eye(total.shape[-1])
        case "pr1296" | "pr1392":
            return LENGTH * hessian_NCC
        case "pr1499":  # the mean over the runs of a layer, of which 3, 4 and 5 have two
            runs = torch.ones(len(hessian_NCC))
            runs[3:6] = 2
            return hessian_NCC / runs[:, None, None]
    return 2 * LENGTH * hessian_NCC  # the sum over a batch of two sequences, on average


@pytest.mark.parametrize("name", SYSTEMS)
def test_hessians_are_the_published_ones(name):
    known = tensors(name, "hessians")
    params, weights = shrunk(name), given(name, "network", "weights.")
    network = load_network(
        Trained(params.model, VOCAB, LENGTH, weights, {}), params.calibrate.network
    )
    batches = known["tokens"][..., :LENGTH].reshape(-1, 2, LENGTH)
    found = {
        family: as_published(name, hessian)
        for family, hessian in gather(network, batches, ALONE).items()
    }
    for family in ("qkv", "o", "up", "down"):
        diagonal = found[family].diagonal(dim1=1, dim2=2)
        assert distance(diagonal, known[f"{family}.diagonal"]) < TOLERANCE, family
        corner = found[family][4, :32, :32]
        key = f"{family}.4.corner" if family == "down" else f"{family}.4"
        assert distance(corner, known[key]) < TOLERANCE, family
    if "embedding" in known:
        assert distance(found["embedding"][0], known["embedding"]) < TOLERANCE
