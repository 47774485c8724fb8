"""Kinds of device that an estimate is made for.

To replace a figure by your own measurement, edit its line here: `mfu` in
artifacts/metrics/train.json is the utilisation of a real run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from paramgolf.model.flops import PEAK_FLOPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device's arithmetic, bfloat16 on a GPU and float32 on a CPU, and its memory.

    `utilisation` is the share of `peak_flops` that a whole training step reaches, in the counting
    of paramgolf.model.flops. A step never takes less than `shortest_step` seconds: small networks
    wait for kernels to be launched.
    """

    peak_flops: float
    utilisation: float
    memory_bytes: float | None  # None: whatever the machine has
    compute_bytes: int  # of one activation
    fused_kernels: bool
    shortest_step: float


GIB = 2**30
H100 = Device(
    peak_flops=PEAK_FLOPS["H100"],
    # pr1493 on one H100, benchmarks/results/train_speed.md (the published scripts reach 27 % on
    # eight)
    utilisation=0.375,
    memory_bytes=79 * GIB,
    compute_bytes=2,
    fused_kernels=True,
    shortest_step=0.010,
)
DEVICES = {
    "H100": H100,
    # the same arithmetic as an H100, which waits less for its faster memory
    "H200": replace(H100, utilisation=0.41, memory_bytes=140 * GIB),
    # two cores with AVX2: the sample trains at 5,900 tokens/s
    "cpu": Device(
        peak_flops=80e9,
        utilisation=0.70,
        memory_bytes=None,
        compute_bytes=4,
        fused_kernels=False,
        shortest_step=0.0,
    ),
}


def kind_of(name: str) -> str | None:
    """Return the kind of a GPU by the name that its driver gives it; None: one without figures."""
    return next((kind for kind in DEVICES if kind in name), None)
