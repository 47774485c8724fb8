"""Approximate orthogonalisation of stacked matrices by an odd polynomial iteration (Muon).

Sources: Newton-Schulz coefficients, Jordan et al., Muon (2024); Polar Express, arXiv 2505.16932.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Name = Literal["newton_schulz", "polar_express"]
Coefficients = tuple[float, float, float]

NEWTON_SCHULZ: Coefficients = (3.4445, -4.7750, 2.0315)
POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def coefficients(name: Name, iterations: int) -> tuple[Coefficients, ...]:
    """Return (a, b, c) for each iteration; Polar Express repeats its last beyond the fifth."""
    if name == "newton_schulz":
        return (NEWTON_SCHULZ,) * iterations
    last = POLAR_EXPRESS[-1:]
    return (POLAR_EXPRESS + last * iterations)[:iterations]


def orthogonalise(G: Tensor, steps: tuple[Coefficients, ...]) -> Tensor:
    """Move the singular values of each matrix G [n, rows, cols], rows <= cols, near 1.

    Each iteration is X <- aX + (bA + cA^2)X with A = X X^T. The dtype is kept: bfloat16 is enough.
    """
    X = G / (torch.linalg.matrix_norm(G, keepdim=True) + 1e-7)
    for a, b, c in steps:
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return X
