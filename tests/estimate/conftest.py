"""The recipe that most estimates are of."""

import pytest
from recipe_case import recipe

from paramgolf.recipes import Params


@pytest.fixture(scope="session")
def base() -> Params:
    """The parameters of pg#1493."""
    return recipe("base")
