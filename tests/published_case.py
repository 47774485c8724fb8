"""What published systems compute (tests/fixtures), and their recipes at the fixtures' shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from paramgolf.model.network import Network
from paramgolf.recipes import Params, check, compose

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests/fixtures"
SYSTEMS = ("pr1204", "pr1296", "pr1392", "pr1493", "pr1499", "pr1855", "pr2135")
VOCAB = 256
WHOLE, EVERY = 2_048, 9  # tensors beyond WHOLE numbers are given by every ninth number
DOCUMENT_TOKENS = {"pr1855": 24, "pr2135": 24}  # stands for training's 2,048 in packed rows
MLP_WIDTHS = {"pr1204": 3}  # hidden channels per channel of width; the others 4
SHAPE = {
    "width": 32,
    "heads": 4,
    "kv_heads": 2,
    "rope_dims": 4,
    "bigram_dim": 24,
    "value_embedding_dim": 12,
}
BUCKETS = 97
UNMASKED = ("pr1204", "pr1392", "pr1499")  # their code lets embeddings enter the next document
WIDE = {"width": 128, "rope_dims": 16}


@cache
def tensors(name: str, file: str) -> dict[str, Tensor]:
    """Return a file of a system's fixtures; token ids are int64, as the network takes them."""
    loaded = load_file(FIXTURES / name / f"{file}.safetensors")
    return {key: x.long() if x.dtype == torch.int32 else x for key, x in loaded.items()}


@cache
def facts(name: str, file: str) -> dict[str, Any]:
    """Return a JSON file of a system's fixtures."""
    return json.loads((FIXTURES / name / f"{file}.json").read_text(encoding="utf-8"))


def initial_facts(name: str) -> dict[str, dict[str, Any]]:
    """Return, by parameter, how the published run began it."""
    return {key: fact for key, fact in facts(name, "init").items() if not key.startswith("_")}


def shrunk(name: str, shape: Mapping[str, int] = SHAPE, *, as_published: bool = True) -> Params:
    """Return the recipe `name` at the shape of the fixtures; all else is the recipe's own.

    `as_published` lets one document's embeddings enter the next, where published code did.
    """
    content = compose(name, ROOT / "recipes")
    model = content["model"]
    model |= {**SHAPE, **shape}
    model["mlp_hidden"] = MLP_WIDTHS.get(name, 4) * model["width"]
    model["bigram_buckets"] = min(model["bigram_buckets"], BUCKETS)
    if as_published and name in UNMASKED:
        model["bos_mask"] = False
    return check(content, where=name)


def network_of(params: Params, weights: Mapping[str, Tensor]) -> Network:
    """Return the recipe's network with these weights, which must be all that it has."""
    network = Network(params.model, VOCAB)
    network.load_state_dict(dict(weights))
    return network


def given(name: str, file: str, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a file whose key begins with `prefix`, by the rest of the key."""
    found = tensors(name, file).items()
    return {key.removeprefix(prefix): x for key, x in found if key.startswith(prefix)}


def sampled(x: Tensor) -> Tensor:
    """Return the numbers of x that the fixtures hold."""
    return x if x.numel() <= WHOLE else x.flatten()[::EVERY]


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two tensors, as a share of the largest number expected."""
    found = sampled(found.detach())
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def hashed(k: int, count: int) -> Tensor:
    """Return h(k, 0), h(k, 1), ..., in -1..1, float64: numbers that a formula gives.

    In 32-bit unsigned arithmetic x = i + 1000003 k; twice x = (x XOR x >> 16) * 0x45d9f3b; then
    x = x XOR x >> 16, and h = x / 2^31 - 1.
    """
    x = (torch.arange(count) + 1_000_003 * k) & 0xFFFFFFFF
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return (x ^ (x >> 16)).double() / 2**31 - 1


def wide_weights(network: Network) -> dict[str, Tensor]:
    """Return the weights of the fixtures' wider network, which a formula gives by name."""
    weights = {}
    for k, (name, p) in enumerate(sorted(network.named_parameters()), start=1):
        u = hashed(k, p.numel()).view(p.shape)
        weights[name] = _wide(name, u).float()
    return weights


def _wide(name: str, u: Tensor) -> Tensor:
    if name in ("q", "k", "v", "o", "up", "down"):
        return u * (3 / u.shape[-1]) ** 0.5
    if name == "resid_mix":
        return torch.tensor([1.0, 0.0], dtype=u.dtype)[:, None] + 0.5 * u
    center, spread = {
        "embedding": (0, 0.5),
        "lane_keep": (1.1, 0.3),
        "q_gain": (3, 1.5),
        "skip_gate": (0, 2),
        "head_gate": (0, 2),
        "smear_weight": (0, 2),
        "smear_scale": (0.5, 0.2),
        "softcaps": (30, 4),
    }.get(name, (1, 0.5))
    return center + spread * u


def slice_sums(network: Network, x: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return norm, and product with h(1000 + k, i), of each slice of each of a network's tensors.

    Slices go along the first dimension; the embedding, and what has one dimension, is one.
    """
    sums = {}
    for k, name in enumerate(sorted(n for n, _ in network.named_parameters()), start=1):
        if name not in x:
            continue
        tensor = x[name].detach().double()
        whole = name == "embedding" or tensor.dim() == 1
        rows = tensor.reshape(1 if whole else len(tensor), -1)
        weights = hashed(1000 + k, tensor.numel()).view(rows.shape)
        sums[name] = (rows.norm(dim=1), (rows * weights).sum(1))
    return sums
