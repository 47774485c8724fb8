"""The recipe that most estimates are of."""

from __future__ import annotations

from pathlib import Path

import pytest

from paramgolf.recipes import Params, check, compose

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="session")
def base() -> Params:
    """The parameters of pg#1493."""
    return check(compose("base", RECIPES), where="base")
