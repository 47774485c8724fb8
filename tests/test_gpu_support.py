"""Which attention and kernels serve a GPU: Hopper's are for Hopper alone."""

from __future__ import annotations

import sys

import pytest

from paramgolf.errors import ParamGolfError
from paramgolf.gpu_support import (
    FLASH_ATTENTION_MODULE,
    flash_attention_obstacle,
    fused_kernels_obstacle,
)
from paramgolf.model.attention import flash_attention_3


def test_hopper_with_its_packages_is_served():
    assert flash_attention_obstacle((9, 0), installed=True) is None
    assert fused_kernels_obstacle([9, 0], triton=True) is None


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0), (12, 0)])
def test_no_other_gpu_is_given_what_is_made_for_hopper(capability):
    for obstacle in (
        flash_attention_obstacle(capability, installed=True),
        fused_kernels_obstacle(capability, triton=True),
    ):
        assert f"compute capability {capability[0]}.{capability[1]}" in obstacle


def test_a_missing_package_is_named():
    assert flash_attention_obstacle((9, 0), installed=False) == "package flash_attn_3 absent"
    assert fused_kernels_obstacle((9, 0), triton=False) == "package triton absent"


def test_a_cpu_has_neither():
    assert flash_attention_obstacle(None, installed=True) == "device cpu"
    assert fused_kernels_obstacle(None, triton=True) == "device cpu"


def test_a_broken_build_of_flash_attention_is_said_to_be_one(monkeypatch):
    monkeypatch.setitem(sys.modules, FLASH_ATTENTION_MODULE, None)  # an import of it fails
    with pytest.raises(ParamGolfError, match=r"cannot be imported(.|\n)*runtime\.attention"):
        flash_attention_3()
