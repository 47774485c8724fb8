"""A trained network on which benchmarks try settings of the quantizer."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch

from paramgolf.codec.container import dequantized
from paramgolf.data.token_set import TokenSet, open_tokens
from paramgolf.model.network import Network, Pass
from paramgolf.packing.code import frozen_params, pack_code
from paramgolf.progress import say
from paramgolf.quant.adjust import adjust
from paramgolf.quant.calibrate import collect
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.fit import Solution, artifact_parts, fit
from paramgolf.quant.quantize import prepare, solve_model
from paramgolf.quant.solved import Family
from paramgolf.quant.trained import TEXTS, Trained, load_trained
from paramgolf.recipes import Params
from paramgolf.runtime import Runtime, synchronize
from paramgolf.training.validate import validate

LIMIT_BYTES = 15_990_000
SENSITIVITY_SEQUENCES = 64
WORKERS = 2  # packings under way while the GPU goes on


class Point(NamedTuple):
    """What a setting costs.

    Attributes:
        bits: of the whole artifact, per weight.
        loss: bits per byte more than before.
        seconds: of solving and adjusting.
    """

    bits: float
    loss: float
    seconds: float

    @property
    def level(self) -> float:
        """Bits per weight at a loss of 1: of two settings the better one has less."""
        return self.bits + math.log2(max(self.loss, 1e-9)) / 2


class Bench:
    """A trained model, its Hessians, and what is measured of them.

    Attributes:
        before: bits per byte of the trained model.
        limit: bytes that settings are fitted to, code included.
        fits: settings at the clips of their fit, by name.
        fitted_points: what they cost there.
        solution: of the last fit.
    """

    def __init__(self, params: Params, runtime: Runtime) -> None:
        self.params, self.runtime = params, runtime
        self.trained: Trained = load_trained()
        self.tokens: TokenSet = open_tokens()
        self.network = Network(self.trained.model, self.trained.vocab_size)
        self.network = self.network.on(replace(runtime, compile=False))
        self.before = self.bits_per_byte(self.trained.state)
        self.fits: dict[str, QuantizeConfig] = {}
        self.fitted_points: dict[str, Point] = {}
        self.solution: Any = None
        self._pool = ThreadPoolExecutor(WORKERS)  # packing has processes: the GPU goes on
        self._points: dict[QuantizeConfig, Future[Point]] = {}
        self._solved: dict[QuantizeConfig, tuple[Solution, float]] = {}
        self._codes: dict[str, int] = {}
        self.limit = LIMIT_BYTES
        self.weights = sum(tensor.numel() for tensor in self.trained.state.values())

    def timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """Return what `work` returns, and its seconds."""
        synchronize(self.runtime.device)
        start = time.perf_counter()
        found = work()
        synchronize(self.runtime.device)
        return found, time.perf_counter() - start

    def bits_per_byte(self, state: dict[str, torch.Tensor]) -> float:
        """Score weights on the validation text."""
        self.network.load_state_dict(state)
        length = self.trained.sequence_length
        return validate(
            self.network,
            self.tokens.val(),
            self.tokens.val_bytes(),
            Pass(order=self.trained.model.orders[-1]),
            self.runtime,
            length=length,
            batch_windows=max(1, 65536 // length),
            max_tokens=self.params.eval_sliding.max_tokens,
        ).bits_per_byte

    def code_bytes(self, codec: str) -> int:
        """Return the bytes of train_gpt.py."""
        if codec not in self._codes:
            p = self.params
            frozen = frozen_params(asdict(self.trained.model), p.train, p.eval_sliding, p.eval_ttt)
            self._codes[codec] = len(pack_code(frozen, rans=codec == "rans").content)
        return self._codes[codec]

    @functools.cached_property
    def hessians(self) -> dict[str, torch.Tensor]:
        """Hessians, sensitivities and texts."""
        start, calibrate = time.perf_counter(), self.params.calibrate
        count = min(SENSITIVITY_SEQUENCES, calibrate.sequences)
        config = replace(calibrate, source="train", sensitivity_sequences=count)
        found = collect(self.trained, self.tokens, config, self.runtime)[0]
        say(f"quantize: Hessians: {time.perf_counter() - start:.1f} s")
        return found

    def prepared(self, setting: QuantizeConfig) -> list[Family]:
        """Factorise."""
        device = self.runtime.device
        return prepare(self.trained, self.hessians, setting, device)

    def solved(self, setting: QuantizeConfig) -> tuple[Solution, float]:
        """Factorise and quantise, without adjusting, once; return the seconds, too."""
        setting = replace(setting, adjust_steps=0)
        if setting not in self._solved:
            _ = self.hessians  # not timed

            def work() -> Solution:
                return solve_model(self.trained, self.prepared(setting), setting)

            self._solved[setting] = self.timed(work)
        return self._solved[setting]

    def adjusted(self, solution: Solution, setting: QuantizeConfig) -> Solution:
        """Let scales and vectors learn, where the setting says so."""
        if not setting.adjust_steps:
            return solution
        texts, (tensors, reports) = self.hessians[TEXTS].long(), solution
        return adjust(self.trained, tensors, texts, setting, self.runtime), reports

    def packed(self, solution: Solution, setting: QuantizeConfig) -> int:
        """Return the bytes of the artifact of a solution."""
        coded = replace(setting, fit_code_bytes=self.code_bytes(setting.fit_codec))
        return sum(part.bytes for part in artifact_parts(self.trained, coded)(solution))

    def tried(self, solution: Solution, setting: QuantizeConfig, seconds: float) -> Future[Point]:
        """Adjust and score a solution that took so many seconds; its bytes come later."""
        solution, more = self.timed(lambda: self.adjusted(solution, setting))
        loss = self.bits_per_byte(dequantized(solution[0])) - self.before

        def point() -> Point:
            return Point(self.bits(self.packed(solution, setting)), loss, seconds + more)

        return self._pool.submit(point)

    def point(self, setting: QuantizeConfig) -> Future[Point]:
        """Solve, adjust and score a setting, once."""
        if setting not in self._points:
            solution, seconds = self.solved(setting)
            self._points[setting] = self.tried(solution, setting, seconds)
        return self._points[setting]

    def bits(self, size: int) -> float:
        """Return bits per weight of so many bytes."""
        return 8 * size / self.weights

    def fitted(self, setting: QuantizeConfig, limit: int) -> tuple[float, dict[str, Any], float]:
        """Return bits per byte at `limit` bytes, the record of the search, and its seconds."""
        code = self.code_bytes(setting.fit_codec)
        coded = replace(setting, fit_bytes=limit, fit_code_bytes=code)
        _ = self.hessians  # not timed

        def search() -> Any:
            families, measure = self.prepared(setting), artifact_parts(self.trained, coded)
            found = fit(coded, lambda one: solve_model(self.trained, families, one), measure)
            return self.adjusted(found[0], setting), found[1]

        (solution, record), seconds = self.timed(search)
        self.solution = solution
        return self.bits_per_byte(dequantized(solution[0])), record, seconds
