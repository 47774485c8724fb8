"""Approximate orthogonalization of stacked matrices by an odd polynomial iteration (Muon).

Sources: the quintic Newton-Schulz iteration of Keller Jordan et al., Muon (2024),
kellerjordan.github.io/posts/muon; Polar Express, arXiv 2505.16932.

With the singular value decomposition X = U S V^T, the step
    X <- a X + (b A + c A^2) X,   A = X X^T = U S^2 U^T
leaves U and V as they are and moves each singular value by p(s) = a s + b s^3 + c s^5. So a few
matrix products, which a GPU does fast and in bfloat16, bring all singular values near 1, where an
exact decomposition would take longer than the rest of the training step.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Name = Literal["newton_schulz", "polar_express"]
Coefficients = tuple[float, float, float]

# One polynomial, iterated. Small singular values grow by a factor of a = p'(0) each time, so a is
# as large as it can be while those that have grown are kept in a band around 1, instead of
# converging to it: p turns at p(0.55) = 1.20 and p(1.05) = 0.68, and five iterations take every s
# in [0.003, 1] into [0.68, 1.21]. How near to 1 they come matters less to training than that none
# is left behind.
NEWTON_SCHULZ: Coefficients = (3.4445, -4.7750, 2.0315)
# A polynomial for each iteration: the one that is best, in the maximum norm, on the interval that
# those before it leave. Five take [0.001, 1] into [0.85, 1.15].
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


def orthogonalize(G: Tensor, polynomials: tuple[Coefficients, ...]) -> Tensor:
    """Move the singular values of each matrix G [n, rows, cols], rows <= cols, near 1.

    The dtype is kept: bfloat16 is enough. With rows <= cols, A = X X^T is the smaller of the two
    possible squares.
    """
    # the Frobenius norm bounds the largest singular value, so that all begin in [0, 1]
    X: Tensor = G / (torch.linalg.matrix_norm(G, keepdim=True) + 1e-7)
    for a, b, c in polynomials:
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # b A + c A^2
        X = torch.baddbmm(X, B, X, beta=a)  # a X + B X
    return X
