"""The MLP in FP8 beside bfloat16, on one GPU: `python benchmarks/fp8.py --recipes pr1493 best`.

First milliseconds of the products of a layer of pr1493, 98,304 tokens, forward and backward;
then whole steps of each recipe, tokens per second, with train.precision bf16 and fp8_mlp.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping

import torch
from child import answer_of
from tables import Row, device_name, need_gpus, write_results
from torch import Tensor
from train_speed import FULL

from paramgolf.model.fp8 import (
    E4,
    E5,
    activation_unit,
    input_unit,
    rounded,
    shortened,
)
from paramgolf.model.torch_internals import short_product
from paramgolf.profiling.step_benchmark import StepBenchmark
from paramgolf.program import exit_on_fault
from paramgolf.recipes import check, compose
from paramgolf.runtime import processes

ROWS, WIDTH, HIDDEN, SLOPE = 98_304, 512, 2048, 0.5
WARM_UP, REPEAT = 100, 300  # milliseconds
PRECISIONS = "bf16", "fp8_mlp"
# tokens per second, in steps of FULL tokens
TARGETS = {("pr1493", "before recurrence"): 1.40e6, ("pr1493", "after recurrence"): 0.93e6}
Works = Mapping[str, Callable[[], object]]


def in_bfloat16(x: Tensor, dy: Tensor, up: Tensor, down: Tensor) -> Works:
    """Return the products of a layer, by what they make."""
    from paramgolf.model.kernels import hidden  # where there is Triton

    a, dz = (x.new_empty(len(x), HIDDEN) for _ in range(2))
    y = torch.randn_like(x)
    return {
        "a": lambda: hidden.run(x, up, a, a, SLOPE, backward=False),
        "y": lambda: y.addmm_(a, down.T),
        "dz": lambda: hidden.run(dy, down, a, dz, SLOPE, backward=True),
        "dn": lambda: dz @ up,
        "d up": lambda: dz.T @ x,
        "d down": lambda: dy.T @ a,
    }


def in_fp8(x: Tensor, dy: Tensor, up: Tensor, down: Tensor) -> Works:
    """Return the same, and what shortens dy."""
    from paramgolf.model.kernels import hidden, mlp_fp8  # where there is Triton

    a = torch.empty(len(x), HIDDEN, dtype=E4, device=x.device)
    a_turned = torch.empty(HIDDEN, len(x), dtype=E4, device=x.device)
    dz, dz_turned = (torch.empty_like(t, dtype=E5) for t in (a, a_turned))
    n_unit, unit = input_unit(WIDTH), 2.0**-8
    n = rounded(x, E4, n_unit)
    n_turned, (dn, dn_turned) = n.T.contiguous(), mlp_fp8.shorten(dy, unit)
    words = hidden.sign_words(n, HIDDEN)
    up8, down8, y = shortened(up), shortened(down), torch.randn_like(x)
    a_unit, one = activation_unit(up, torch.ones((), device=x.device)), torch.ones_like(up8.unit)
    made = hidden.Short(a_turned, words, (up8.unit, a_unit), n_unit)
    gradient = hidden.Short(dz_turned, words, (down8.unit, a_unit))
    return {
        "dy": lambda: mlp_fp8.shorten(dy, unit),
        "a": lambda: hidden.run(n, up8.whole, a, a, SLOPE, backward=False, short=made),
        "y": lambda: mlp_fp8.add_product(a, down8.whole, y, (a_unit, down8.unit)),
        "dz": lambda: hidden.run(dn, down8.turned, a, dz, SLOPE, backward=True, short=gradient),
        "dn": lambda: short_product(dz, up8.turned, one, one, exact=False),
        "d up": lambda: short_product(dz_turned, n_turned, one, one, exact=True),
        "d down": lambda: short_product(dn_turned, a_turned, one, one, exact=True),
    }


def products() -> Iterator[Row]:
    """Time a layer."""
    from triton.testing import do_bench  # where there is a GPU

    def random(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)

    def timed(work: Callable[[], object]) -> float:
        return float(do_bench(work, WARM_UP, REPEAT, return_mode="median"))

    x, dy = random(ROWS, WIDTH), random(ROWS, WIDTH)
    weights = random(HIDDEN, WIDTH) / WIDTH**0.5, random(WIDTH, HIDDEN) / HIDDEN**0.5
    long, short = (
        {name: timed(work) for name, work in works(x, dy, *weights).items()}
        for works in (in_bfloat16, in_fp8)
    )
    short |= {"all": sum(short.values())}
    long |= {"all": sum(long.values())}
    them = f"a layer's MLP in FP8, {ROWS:,} tokens, {device_name()}"
    for name, value in short.items():
        figure = f"{them}: {name}; reference: bfloat16"
        yield Row(figure, value, "ms", long.get(name), None, "lower")


def whole_steps(recipe: str, precision: str, tokens: int) -> dict[str, float]:
    """Return tokens per second of whole steps by phase, and the peak of the memory, GiB."""
    params = check(compose(recipe), where=recipe)
    train = dataclasses.replace(params.train, precision=precision)
    params = dataclasses.replace(params, train=train)
    with processes(dataclasses.replace(params.runtime, device="cuda")) as runtime:
        benchmark = StepBenchmark(params, runtime)
        phases = {"before recurrence": 0, "after recurrence": -1}
        found = {n: tokens / benchmark.step_seconds(p, tokens) for n, p in phases.items()}
        return {**found, "memory": torch.cuda.max_memory_allocated() / 2**30}


def steps(recipe: str, tokens: int) -> Iterator[Row]:
    """Time whole steps of a recipe in both precisions, each in a process of its own."""
    command = [__file__, "--recipes", recipe, "--tokens", str(tokens), "--child"]
    # one after the other: what compiles takes the GPU, too
    long, short = [answer_of([*command, precision]) for precision in PRECISIONS]
    for name, value in short.items():
        unit, better = ("GiB", "lower") if name == "memory" else ("tokens/s", "higher")
        figure = f"{recipe}, fp8_mlp, {name}, {tokens:,} tokens a step; reference: bf16"
        target = TARGETS.get((recipe, name)) if tokens == FULL else None
        yield Row(figure, value, unit, long[name], target, better)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="*", default=["pr1493", "best"])
    parser.add_argument("--tokens", type=int, default=FULL, help="of a step")
    parser.add_argument("--layer", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    need_gpus()
    if options.child:
        recipe, tokens = options.recipes[0], options.tokens
        print(json.dumps(whole_steps(recipe, options.child, tokens)))
        return
    for recipe in options.recipes:
        compose(recipe)  # an unknown one is refused before minutes of another
    if options.layer:
        write_results("train_speed", [*products()])
    for recipe in options.recipes:
        write_results("train_speed", [*steps(recipe, options.tokens)])


if __name__ == "__main__":
    with exit_on_fault():
        main()
