"""Fixtures of the quantizer: a small trained model and its Hessians."""

import pytest
from quantize_case import make_hessians, make_trained


@pytest.fixture
def trained(tiny_model):
    return make_trained(tiny_model())


@pytest.fixture
def hessians(trained):
    return make_hessians(trained)
