"""Training from tokens to averaged weights: the loop, validation and resuming."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from paramgolf.bits_per_byte import Tally
from paramgolf.checkpoint import Checkpoint, resume_key
from paramgolf.clock import Clock, seconds_since_start
from paramgolf.data.token_set import TokenSet, open_tokens
from paramgolf.errors import ParamGolfError
from paramgolf.files import sha256_file, write_json
from paramgolf.model.config import ModelConfig
from paramgolf.model.flops import training_flops
from paramgolf.model.network import Network, Pass
from paramgolf.progress import Meter, say
from paramgolf.runtime import Runtime, start_copy, synchronize
from paramgolf.training.batches import Batches
from paramgolf.training.config import TrainConfig
from paramgolf.training.log import Log, environment
from paramgolf.training.passes import Passes
from paramgolf.training.regime import Regime, regime_at
from paramgolf.training.result import METRICS, OUT, Progress, metrics_of, write_model
from paramgolf.training.schedule import Point, point, second_token_weight
from paramgolf.training.state import TrainState
from paramgolf.training.validate import validate

# milliseconds by kind, of a function that runs the passes of a step, and one that runs the rest
Split = Callable[[Callable[[], object], Callable[[], object]], dict[str, float] | None]


def train(
    model: ModelConfig,
    config: TrainConfig,
    runtime: Runtime,
    split: Split | None = None,
    log: type[Log] = Log,
) -> None:
    """Train on data/tokens; write artifacts/train and its metrics; resume if a run was cut off.

    At the end `split` measures, for the metrics, where the time of a step goes. `log` may be a
    subclass of Log that writes more.
    """
    run = TrainingRun(model, config, runtime, open_tokens(), log)
    run.resume()
    run.warm_up()
    run.loop()
    run.finish(split)


def initial_network(
    model: ModelConfig, config: TrainConfig, runtime: Runtime, tokens: TokenSet
) -> Network:
    """Return the network before its first step, on this process's device."""
    network = Network(model, tokens.vocab_size, seed=config.seed, device=runtime.device)
    network = network.on(runtime)
    if config.precision == "fp8_mlp":
        from paramgolf.model.fp8 import has_kernels  # see packing/code.py

        if runtime.is_main and not has_kernels(network.backend):
            say("train: FP8 is imitated here, slower than bf16; its kernels are for Hopper GPUs")
    if config.token_mask:
        from paramgolf.model.token_mask import masked  # see packing/code.py

        network = masked(network, tokens)
    return network


class TrainingRun:
    """One run: `progress` says how far it has come, and `clock` counts its seconds."""

    def __init__(
        self,
        model: ModelConfig,
        config: TrainConfig,
        runtime: Runtime,
        tokens: TokenSet,
        log: type[Log],
    ) -> None:
        self.model, self.config, self.runtime = model, config, runtime
        self.progress = Progress()
        self.clock = Clock()
        self._tokens = tokens
        self._network = initial_network(model, config, runtime, tokens)  # as the passes see it
        self._state = TrainState(self._network, config, runtime)
        micro_batch_tokens = config.micro_batch_tokens
        if micro_batch_tokens == "auto":
            from paramgolf.training.micro_batch import choose_micro_batch

            micro_batch_tokens = choose_micro_batch(self._network, config, runtime)
        self._batches = Batches(tokens.train(), config, runtime, micro_batch_tokens)
        self._passes = Passes(model, config, self._batches, runtime)
        key = resume_key(
            dataclasses.asdict(model),
            dataclasses.asdict(config),
            sha256_file(tokens.folder / "manifest.json"),
            [runtime.world, str(runtime.device.type)],
        )
        self._checkpoint = Checkpoint("train", key)
        self._log = log(OUT / "log.jsonl", show=runtime.is_main)
        self._startup_seconds = 0.0
        # a step's record, and its loss once it has been copied
        self._unread: tuple[dict[str, Any], Callable[[], np.ndarray]] | None = None
        self._shown_loss = ""  # nothing until a loss has been read

    @property
    def _regime(self) -> Regime:
        return Regime(self.config.batch_sizes[self.progress.sizes], self.progress.phase)

    def resume(self) -> None:
        """Resume from the newest checkpoint of the same parameters, data and code, if any."""
        saved = self._checkpoint.load(self.runtime.device, tell=self.runtime.is_main)
        if saved is None:
            self._log.write({"event": "start", **environment(self.runtime)})
            return
        self._state.load(saved["state"])
        self.progress = Progress(**saved["progress"])
        self._log.restore(saved["log"])
        if self.runtime.is_main:
            say(f"train: resumed at step {self.progress.step} from {self._checkpoint.path}")

    def _save_checkpoint(self) -> None:
        """Write a checkpoint, unless the newest loss is not finite."""
        self._read_loss()
        if self.runtime.is_main:
            progress = dataclasses.replace(self.progress, seconds=self.clock.elapsed)
            state = {"state": self._state.state(), "progress": dataclasses.asdict(progress)}
            self._checkpoint.save({**state, "log": self._log.lines})
        self.runtime.barrier()

    def warm_up(self) -> None:
        """Compile and capture what training will run, then start the clock."""
        if self.runtime.compile:
            self._passes.warm_up(self._state)
        synchronize(self.runtime.device)
        self._startup_seconds = seconds_since_start()
        self.clock = Clock(spent=self.progress.seconds)

    def loop(self) -> None:
        """Take steps until the budget of steps or seconds is spent."""
        meter = Meter("train", show=self.runtime.is_main)
        if self.progress.step == 0:
            self._validate(self.config.validation_tokens)
        before = self.clock.elapsed
        while True:
            at = point(self.config, self.progress.step, self._agreed_seconds())
            if at.fraction >= 1:
                break
            self._enter_regime(at)
            self._step(at)
            meter.update(at.fraction, f"step {self.progress.step}{self._shown_loss}")
            now = self.clock.elapsed
            self.progress.step_ms.append(1000 * (now - before))
            self._pause_for_records()
            before = self.clock.elapsed
        self._read_loss()
        synchronize(self.runtime.device)
        meter.close()

    def _agreed_seconds(self) -> float:
        """Return the main process's clock, so that all processes end at one step.

        A GPU still has the last step to do then, so that the time of a step is added.
        """
        queued = self.progress.step_ms[-1:] if self.runtime.device.type == "cuda" else []
        seconds = self.clock.elapsed + sum(queued) / 1000
        return seconds if self.config.budget_seconds is None else self.runtime.agree(seconds)

    def _enter_regime(self, at: Point) -> None:
        progress, regime = self.progress, regime_at(self.model, self.config, at)
        if regime.phase != progress.phase:
            self._state.enter_phase(regime.phase)
        progress.phase = regime.phase
        progress.sizes = self.config.batch_sizes.index(regime.sizes)
        self._network = self._state.network_at(at)

    def _step(self, at: Point) -> None:
        """Take one step; its loss is read when the next one is under way."""
        progress, regime = self.progress, self._regime
        self._passes.weigh_second_tokens(second_token_weight(self.config, at))
        loss = start_copy(self._gradient())
        multiplier = self._state.step(at, factor=self.config.batch_rate(regime.sizes))
        progress.step += 1
        progress.tokens += regime.sizes.batch_tokens
        progress.flops += regime.sizes.batch_tokens * self._token_flops()
        # Reading a loss waits until its copy is made, and that of the step before was queued before
        # this step: the device still has all of this one to do, and never runs out of work.
        self._read_loss()
        record = {"step": progress.step, "lr": multiplier, "tokens": progress.tokens}
        self._unread = {**record, "seconds": self.clock.elapsed}, loss

    def _gradient(self) -> Tensor:
        self._state.zero_grad()
        return self._passes.gradient(self._network, self._regime, self.progress.tokens)

    def _token_flops(self) -> float:
        """Return the floating-point operations that training on a token takes at present."""
        length, order = self._regime.sizes.sequence_length, self._regime.order(self.model)
        return training_flops(self.model, self._tokens.vocab_size, order, length)

    def _read_loss(self) -> None:
        """Read and log the loss that is still unread; one that is not finite is an error."""
        if self._unread is None:
            return
        (record, loss), self._unread = self._unread, None
        value = float(loss())
        self._check_loss(value, f"step {record['step']}")
        self._shown_loss = f" loss {value:.4f}"
        self._log.write({"event": "step", **record, "loss": value})

    def _check_loss(self, loss: float, where: str) -> None:
        """Raise ParamGolfError if a loss is not finite."""
        if not math.isfinite(loss):
            path = self._checkpoint.path
            kept = path if path.is_file() else "none was written yet"
            raise ParamGolfError(
                "training diverged: the loss is not finite",
                where=where,
                found=loss,
                fix=f"lower train.matrix_lr or train.token_lr (last good checkpoint: {kept})",
            )

    def _pause_for_records(self) -> None:
        """Validate and save a checkpoint when they are due; neither counts as training time."""
        every, save_every = self.config.validate_every, self.config.checkpoint_every
        if every and self.progress.step % every == 0:
            self._validate(self.config.validation_tokens)
        if save_every and self.progress.step % save_every == 0:
            synchronize(self.runtime.device)  # or steps that are still queued would not count
            with self.clock.paused():
                self._save_checkpoint()

    def _validate(self, max_tokens: int | None) -> Tally:
        synchronize(self.runtime.device)
        sizes, order = self._regime.sizes, self._regime.order(self.model)
        with self.clock.paused():
            score = validate(
                self._network,
                self._tokens.val(),
                self._tokens.val_bytes(),
                Pass(order, document_tokens=self.config.document_tokens(sizes)),
                self.runtime,
                length=sizes.sequence_length,
                batch_windows=self._batches.windows(sizes),
                max_tokens=max_tokens,
            )
        self._check_loss(score.loss, f"validation after step {self.progress.step}")
        found = {"val_loss": score.loss, "val_bpb": score.bits_per_byte}
        record = {"event": "validation", "step": self.progress.step, **found}
        self._log.write({**record, "tokens_scored": score.tokens})
        return score

    def finish(self, split: Split | None) -> None:
        """Average the weights, validate in full, write the model and the metrics."""
        seconds = self.clock.elapsed
        self._state.load_average()
        self._network = self._state.network
        score = self._validate(None)
        if self.runtime.is_main:
            described = {
                "vocab_size": self._tokens.vocab_size,
                "sequence_length": self._regime.sizes.sequence_length,
                "seed": self.config.seed,
                "token_mask": self.config.token_mask,
            }
            write_model(self.model, self.progress, self._network.state_dict(), described)
        metrics = metrics_of(self.progress, seconds, score, self.runtime)
        metrics["parameters"] = sum(p.numel() for p in self._network.parameters())
        metrics["startup_seconds"] = self._startup_seconds
        # the weights are written by now: these steps change them
        at = point(self.config, self.progress.step, 0.0)
        metrics["time_split_ms"] = split and split(self._gradient, lambda: self._state.step(at))
        if self.runtime.is_main:
            write_json(METRICS, metrics)
            self._checkpoint.remove()
        self.runtime.barrier()
