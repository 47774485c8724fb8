"""The loss kernel compiles for a Hopper GPU, without one: the interpreter takes more than Triton.

`make test-kernels` runs this; a process of its own compiles, since this one interprets kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs the Triton of make test-kernels"
)
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from paramgolf.model.kernels.loss import _losses

POINTERS = {"logits": "*bf16", "targets": "*i64", "caps": "*fp32", "nll": "*fp32"}
for masked, words in ((True, "*i32"), (False, "*i64")):
    constants = {"WIDE": 64, "EXACT": False, "GRADIENT": True, "MASKED": masked, "NEVER": -1e4}
    kinds = POINTERS | {"words": words, "states": "*i64", "vocab": "i32", "width": "i32"}
    kinds |= dict.fromkeys(constants, "constexpr")
    places = {(list(kinds).index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=_losses, signature=kinds, constexprs=places)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
"""


def test_the_loss_compiles_with_and_without_a_mask():
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    found = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment
    )
    assert found.returncode == 0, found.stderr
