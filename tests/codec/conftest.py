"""A small network, and its container."""

import pytest
from package_case import make_quantized

from paramgolf.codec.writer import encode


@pytest.fixture
def model(tiny_model):
    return tiny_model()


@pytest.fixture
def packed(model):
    tensors, config = make_quantized(model)
    return encode(tensors, config, "brotli")[0]
