"""Trellis-coded quantization: rounding in which each integer's parity follows from those before it.

On a grid of half the step, an integer whose parity is known costs as many bits as one on the whole
step's grid. A trellis of 8 states (Ungerboeck's) says what the parity is: it is the lowest bit of
the state, and the state after an integer follows from the state before and the integer's two lowest
bits. So the choice of one integer decides between which integers the next one may choose, and the
best path of a column is found by the Viterbi algorithm: for each state the cheapest way to it is
kept, step by step, and traced back from the cheapest end. It has about 1 dB, a fifth, less squared
error than rounding at the same bits, of the 1.53 dB that lie between rounding and the best possible
code (Marcellin and Fischer, IEEE Trans. Commun. 38, 1990).

Paths run down the rows of a column, so that GPTQ, which goes from column to column, goes on as
ever. The coder (paramgolf.codec.rans) knows the trellis and spends no bit on the parities.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

STATES = 8
SEGMENT = 64  # rows after which the path begins anew at state 0


def segment_of(*rows: int) -> int:
    """Return the segment's rows, a power of 2 that divides all of `rows`, at most SEGMENT."""
    return min(SEGMENT, *(count & -count for count in rows))


def best_paths(target: Tensor, cost: Tensor, maximum: Tensor, segment: int) -> Tensor:
    """Return the integers of the paths with the least sum of cost x (target - integer)^2.

    All are float32 [..., R], `target` in units of the half grid's step; integers lie in
    -maximum..maximum, which are at least 3. A path runs through `segment` rows.
    """
    shape = target.shape
    # [segment, paths]: row by row, all paths at once
    target, cost, maximum = (x.reshape(-1, segment).T for x in (target, cost, maximum))
    candidates = _nearest_of_each_residue(target.unsqueeze(1), maximum.unsqueeze(1))
    costs = cost.unsqueeze(1) * (target.unsqueeze(1) - candidates).square()
    before, residue = transitions(target.device)
    added = costs[:, residue.flatten()].view(segment, STATES, 2, -1)
    total = torch.full((STATES, target.shape[1]), torch.inf, device=target.device)
    total[0] = 0
    chosen = torch.empty(segment, STATES, target.shape[1], dtype=torch.int64, device=target.device)
    for i in range(segment):
        total, chosen[i] = (total[before] + added[i]).min(1)
    state = total.argmin(0)
    transition = torch.empty_like(chosen[:, 0])
    for i in reversed(range(segment)):
        transition[i] = 2 * state + chosen[i].gather(0, state.unsqueeze(0)).squeeze(0)
        state = before.flatten()[transition[i]]
    path = residue.flatten()[transition].unsqueeze(1)
    return candidates.gather(1, path).squeeze(1).T.reshape(shape)


def _nearest_of_each_residue(target: Tensor, maximum: Tensor) -> Tensor:
    """Return the nearest integers that are 0, 1, 2, 3 modulo 4 and within the maximum.

    Of [segment, 1, paths] it makes [segment, 4, paths]. Transitions tell integers apart by their
    two lowest bits, so that no other integer can be on a best path.
    """
    residues = torch.arange(4, device=target.device).view(1, 4, 1)
    integers = 4 * ((target - residues) / 4).round() + residues
    integers = integers - 4 * ((integers - maximum) / 4).ceil().clamp_min(0)
    return integers + 4 * ((-maximum - integers) / 4).ceil().clamp_min(0)


@functools.cache
def transitions(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the two states before each state, and the integer mod 4 of each way, int64 [8, 2].

    With p the lowest bit of state z and h that of the integer's half, the integer is 2 h + p
    modulo 4, and the next state is ((z >> 1) XOR p XOR 2 h) & 3, with p as its bit 2.
    """
    arriving: list[list[tuple[int, int]]] = [[] for _ in range(STATES)]
    for state in range(STATES):
        for half in (0, 1):
            parity = state & 1
            after = ((state >> 1) ^ parity ^ half << 1) & 3 | parity << 2
            arriving[after].append((state, 2 * half + parity))
    table = torch.tensor(arriving, device=device)
    return table[:, :, 0], table[:, :, 1]
