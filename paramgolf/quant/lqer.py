"""LQER: a low-rank correction for the matrices that quantizing hurts most.

arXiv 2402.02446; packed as in pg#1797, but with a scale for each column of the left factor. The
error E = W - dequantized W is cut to its leading r components, E ~ left @ right, and both factors
are stored as small integers with float16 scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paramgolf.codec.dequantize import low_rank
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.grids import round_scales
from paramgolf.quant.solved import Solved

LEFT_BITS, RIGHT_BITS = 2, 4  # codes -2..1 and -8..7 (pg#1797)


def add_corrections(solved: list[Solved], config: QuantizeConfig) -> None:
    """Correct the `low_rank_matrices` matrices with the largest error, in place.

    The error is ||E||^2. A matrix whose packed correction would not reduce it stays as it is.
    """
    ranked = []
    for index, one in enumerate(solved):
        errors = _sizes(one.weight - one.dequantized).tolist()
        ranked += [(-error, index, layer) for layer, error in enumerate(errors)]
    for error, index, layer in sorted(ranked)[: config.low_rank_matrices]:
        one = solved[index]
        remaining = (one.weight - one.dequantized)[layer]
        codes = factorize_error(remaining, config)
        correction = low_rank(**codes)
        left = float(_sizes((remaining - correction).unsqueeze(0)))
        if left < -error or config.low_rank_always:
            one.dequantized[layer] += correction
            one.tensors.update({f"{one.name}.{layer}.{kind}": t for kind, t in codes.items()})


def factorize_error(error_RC: Tensor, config: QuantizeConfig) -> dict[str, Tensor]:
    """Return the packed factors of the best correction of an error: see `low_rank` for shapes.

    The rank is at most the matrix's own.
    """
    vectors, sizes, others = torch.linalg.svd(error_RC.double(), full_matrices=False)
    rank = min(config.low_rank, len(sizes))
    left, right = vectors[:, :rank] * sizes[:rank], others[:rank]
    columns = right.shape[1]
    width = config.low_rank_group if columns % config.low_rank_group == 0 else columns
    together = config.low_rank_left_scales == "matrix"
    left_codes, left_scales = _pack(left.T.unsqueeze(1), LEFT_BITS, together=together)
    right_codes, right_scales = _pack(right.reshape(rank, -1, width), RIGHT_BITS)
    return {
        "left": left_codes.flatten(1).T.contiguous(),
        "left_scales": left_scales.flatten(),
        "right": right_codes.flatten(1),
        "right_scales": right_scales,
    }


def _pack(values: Tensor, bits: int, *, together: bool = False) -> tuple[Tensor, Tensor]:
    """Return int8 codes of `values` [r, g, n] and float16 scales [r, g], or one for all `together`.

    Codes lie in -m..m - 1, m = 2^(bits - 1). The largest |x| falls on m - 1/2, which is as far from
    -m as, on the other side, from m - 1.
    """
    most = 2 ** (bits - 1)
    largest = values.abs().amax(-1)
    if together:
        largest = largest.max().expand_as(largest)
    scales = round_scales(largest / (most - 0.5))
    codes = (values / scales.double().unsqueeze(-1)).round().clamp(-most, most - 1)
    return codes.to(torch.int8), scales


def _sizes(error_NRC: Tensor) -> Tensor:
    return error_NRC.double().square().flatten(1).sum(1)
