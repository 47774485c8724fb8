"""Kernels are told apart by name."""

from __future__ import annotations

import pytest

from paramgolf.training.time_split import kind_of


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void cutlass::device_kernel<flash::FlashAttnBwdSm90>", "attention"),
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT", "gemm"),
        ("void cublasLt::splitKreduce_kernel<32, 16>", "gemm"),
        ("_product", "gemm"),
        ("_losses", "loss"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "communication"),
        ("triton_poi_fused_add_3", "elementwise"),
    ],
)
def test_a_kernel_has_the_kind_that_its_name_tells(kernel, kind):
    assert kind_of(kernel) == kind
