"""The recipes with narrow networks, for tests: layers, orders and options stay their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from paramgolf.model.network import Network
from paramgolf.recipes import Params, check, compose, names

RECIPES = Path(__file__).parents[1] / "recipes"
NARROW = {
    "width": 64,
    "heads": 4,
    "kv_heads": 2,
    "mlp_hidden": 128,
    "rope_dims": 8,
    "bigram_dim": 8,
    "value_embedding_dim": 8,
}
BUCKETS = 64
TINY_MODEL: dict[str, Any] = {
    "layers": 4,
    "width": 32,
    "heads": 4,
    "kv_heads": 2,
    "mlp_hidden": 64,
    "rope_dims": 4,
    "parallel_start": 3,
    "recurrence": [{"at": 0.5, "order": [0, 1, 2, 1, 2, 3]}],
}


def recipe(name: str) -> Params:
    """Return a recipe as it is, checked."""
    return check(compose(name, RECIPES), where=name)


def different(*sections: str) -> list[str]:
    """Name the recipes that differ in these sections: of those that do not, the first."""
    found: dict[str, str] = {}
    for name in names(RECIPES):
        content = compose(name, RECIPES)
        found.setdefault(json.dumps([content[section] for section in sections]), name)
    return [*found.values()]


def narrow_content(name: str) -> dict[str, Any]:
    """Return a recipe's content with a narrow network."""
    content = compose(name, RECIPES)
    buckets = min(content["model"]["bigram_buckets"], BUCKETS)
    content["model"] |= {**NARROW, "bigram_buckets": buckets}
    return content


def narrow_recipe(name: str) -> Params:
    """Return a recipe with a narrow network, checked."""
    return check(narrow_content(name), where=name)


def moved(network: Network) -> Network:
    """Move every parameter that learns, and return the network: a 0 would hide a fault."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return network
