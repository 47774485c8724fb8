"""Training from tokens to averaged weights: the loop, its log, validation and resuming."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from paramgolf.bits_per_byte import Tally
from paramgolf.checkpoint import Checkpoint, resume_key
from paramgolf.clock import Clock, seconds_since_start
from paramgolf.data.token_set import TokenSet, open_tokens
from paramgolf.errors import ParamGolfError
from paramgolf.files import sha256_file, write_bytes, write_json
from paramgolf.model.config import ModelConfig
from paramgolf.model.cuda_graph import CudaGraphs
from paramgolf.model.embedding import mix_aliases
from paramgolf.model.flops import TRAINING_FACTOR, forward_flops, peak_flops
from paramgolf.model.network import Network, Pass
from paramgolf.progress import Meter, say
from paramgolf.runtime import Runtime, device_name, synchronize
from paramgolf.training.batches import Batch, Batches, backward
from paramgolf.training.config import BatchPhase, TrainConfig
from paramgolf.training.log import Log, environment
from paramgolf.training.micro_batch import choose_micro_batch
from paramgolf.training.schedule import Point, point
from paramgolf.training.state import TrainState
from paramgolf.training.time_split import time_split
from paramgolf.training.validate import validate

OUT = Path("artifacts/train")
METRICS = Path("artifacts/metrics/train.json")
SCHEMA = 1


def train(model: ModelConfig, config: TrainConfig, runtime: Runtime) -> None:
    """Train on data/tokens; write artifacts/train and its metrics; resume if a run was cut off."""
    tokens = open_tokens()
    run = Run(model, config, runtime, tokens)
    run.resume()
    run.warm_up()
    run.loop()
    run.finish()


class Run:
    """One training run. `step` steps are done and `clock` has counted their seconds."""

    def __init__(
        self, model: ModelConfig, config: TrainConfig, runtime: Runtime, tokens: TokenSet
    ) -> None:
        self._tokens = tokens
        network = Network(model, tokens.vocab_size, seed=config.seed, device=runtime.device)
        if model.fused_markers:
            mix_aliases(network.get_parameter("embedding"), tokens.aliases)
        self._network = network.on(runtime)  # as the passes see it now
        key = resume_key(
            dataclasses.asdict(model),
            dataclasses.asdict(config),
            sha256_file(tokens.folder / "manifest.json"),
            [runtime.world, str(runtime.device.type)],
        )
        self.model, self.config, self.runtime = model, config, runtime
        self._state = TrainState(self._network, config, runtime)
        self._graphs = CudaGraphs()
        if config.micro_batch_tokens == "auto":
            micro_batch_tokens = choose_micro_batch(self._network, config, runtime)
        else:
            micro_batch_tokens = config.micro_batch_tokens
        self._batches = Batches(tokens.train(), config, runtime, micro_batch_tokens)
        self._checkpoint = Checkpoint("train", key)
        self._log = Log(OUT / "log.jsonl", show=runtime.is_main)
        self.step = 0
        self.tokens = 0  # trained on so far
        self._flops = 0.0  # that they took
        self.phase = 0
        self._sizes = config.sizes[0]
        self._sizes_since = 0  # the step at which the sizes changed
        self.clock = Clock()
        self._spent = 0.0  # seconds before a resume
        self._startup_seconds = 0.0
        self._pending: tuple[dict[str, Any], Tensor] | None = None  # a step whose loss is unread
        self._shown_loss = ""  # nothing until a loss has been read
        self._step_ms: list[float] = []

    @property
    def _pass(self) -> Pass:
        order = self.model.orders[self.phase]
        return Pass(order, document_tokens=self.config.document_tokens(self._sizes))

    def resume(self) -> None:
        """Go on from the newest checkpoint of the same parameters, data and code, if any."""
        saved = self._checkpoint.load(self.runtime.device)
        if saved is None:
            self._log.write({"event": "start", **environment(self.runtime)})
            return
        self._state.load(saved["state"])
        self.step, self.tokens, self.phase = saved["step"], saved["tokens"], saved["phase"]
        self._flops = saved["flops"]
        self._sizes = self.config.sizes[saved["sizes"]]
        self._sizes_since = saved["sizes_since"]
        self._spent = saved["elapsed"]
        self._log.restore(saved["log"])
        self._step_ms = saved["step_ms"]
        if self.runtime.is_main:
            say(f"train: resumed at step {self.step} from {self._checkpoint.path}")

    def save_checkpoint(self) -> None:
        """Write a checkpoint, unless the newest loss is not finite."""
        self._flush()
        if self.runtime.is_main:
            self._checkpoint.save(
                {
                    "state": self._state.state(),
                    "step": self.step,
                    "tokens": self.tokens,
                    "flops": self._flops,
                    "phase": self.phase,
                    "sizes": self.config.sizes.index(self._sizes),
                    "sizes_since": self._sizes_since,
                    "elapsed": self.clock.elapsed,
                    "log": self._log.lines,
                    "step_ms": self._step_ms,
                }
            )
        self.runtime.barrier()

    def warm_up(self) -> None:
        """Compile and capture every phase's graphs on random tokens, then start the clock.

        Weights, moments and batches stay as they are.
        """
        if self.runtime.compile:
            for sizes, phase in self.phase_pairs():
                self._state.zero_grad()
                batch = self._batches.random(sizes, self._tokens.vocab_size)
                work = functools.partial(self._backward, sizes=sizes, phase=phase)
                work(batch)
                if self.runtime.device.type == "cuda":
                    self._graphs.capture((sizes, phase), work, batch)
        self._state.zero_grad()
        synchronize(self.runtime.device)
        self._startup_seconds = seconds_since_start()
        self.clock = Clock(spent=self._spent)

    def phase_pairs(self) -> Iterable[tuple[BatchPhase, int]]:
        """Return the phases of batch sizes and of recurrence that occur together in this run."""
        sizes, model = self.config.sizes, self.model
        if model.recurrence_unit == "step":  # what meets then depends on the speed
            return itertools.product(sizes, range(len(model.orders)))
        turns = [s.at for s in sizes] + [phase.at for phase in model.recurrence]
        return {(self._batches.sizes(Point(0, at, 0.0)), model.phase_at(at, 0)) for at in turns}

    def loop(self) -> None:
        """Take steps until the budget of steps or seconds is spent."""
        meter = Meter("train", show=self.runtime.is_main)
        if self.step == 0:
            self._validate(self.config.validation_tokens)
        before = self.clock.elapsed
        while True:
            at = point(self.config, self.step, self._agreed_seconds())
            if at.fraction >= 1:
                break
            self._enter_phase(at)
            loss = self._forward_backward()
            multiplier = self._state.step(at, rewarm=self._rewarm())
            self.step += 1
            self.tokens += self._sizes.batch_tokens
            self._flops += self._sizes.batch_tokens * self._token_flops()
            # Reading the loss of the step before keeps the host one step ahead of the device.
            self._flush()
            done = {"step": self.step, "lr": multiplier, "tokens": self.tokens}
            self._pending = (done, loss)
            meter.update(at.fraction, f"step {self.step}{self._shown_loss}")
            now = self.clock.elapsed
            self._step_ms.append(1000 * (now - before))
            self._pause_for_records()
            before = self.clock.elapsed
        self._flush()
        synchronize(self.runtime.device)
        meter.close()

    def _token_flops(self) -> float:
        """Return the floating-point operations that training on a token takes at present."""
        length = self._sizes.sequence_length
        order = self.model.orders[self.phase]
        return TRAINING_FACTOR * forward_flops(self.model, self._tokens.vocab_size, order, length)

    def _agreed_seconds(self) -> float:
        """Return the main process's clock, so that all processes end at one step."""
        if self.config.budget_seconds is None:
            return self.clock.elapsed
        return self.runtime.agree(self.clock.elapsed)

    def _enter_phase(self, at: Point) -> None:
        phase = self.model.phase_at(at.fraction, at.step)
        if phase != self.phase:
            self._state.enter_phase(phase)
        self.phase = phase
        sizes = self._batches.sizes(at)
        if sizes != self._sizes:
            self._sizes, self._sizes_since = sizes, self.step
        self._network = self._state.network_at(at)

    def _rewarm(self) -> float:
        """Return the share of the rate after a change of sizes: a linear rise (pg#2014)."""
        if self._sizes_since == 0 or self.config.rewarm_steps == 0:
            return 1.0
        return min(1.0, (self.step - self._sizes_since + 1) / self.config.rewarm_steps)

    def _forward_backward(self) -> Tensor:
        """Accumulate the gradient of the global batch's mean loss; return the loss (scalar)."""
        self._state.zero_grad()
        loss = torch.zeros((), device=self.runtime.device)
        for batch in self._batches.read(self._sizes, self.tokens):
            loss += self._accumulate(batch)
        return self.runtime.sum(loss)

    def _accumulate(self, batch: Batch) -> Tensor:
        """Add the gradient of a micro-batch, by a captured graph where one serves."""
        key = (self._sizes, self.phase)
        if self._network.backend.fake_quant is None and self._graphs.fits(key, batch):
            loss: Tensor = self._graphs(key, batch)
            return loss
        return self._backward(batch, sizes=self._sizes, phase=self.phase)

    def _backward(self, batch: Batch, *, sizes: BatchPhase, phase: int) -> Tensor:
        """Add the gradient of a micro-batch; return its share of the global mean."""
        return backward(
            self._network,
            batch,
            self.model.orders[phase],
            longest=self.config.document_tokens(sizes),
            batch_tokens=sizes.batch_tokens,
        )

    def _flush(self) -> None:
        """Read and log the loss that is still pending; a loss that is not finite is an error."""
        if self._pending is None:
            return
        (done, loss), self._pending = self._pending, None
        value = float(loss)
        self._check_finite(done["step"], value)
        self._shown_loss = f" loss {value:.4f}"
        self._log.write({"event": "step", **done, "loss": value, "seconds": self.clock.elapsed})

    def _check_finite(self, step: int, loss: float) -> None:
        if loss == loss and abs(loss) != float("inf"):
            return
        kept = self._checkpoint.path if self._checkpoint.path.is_file() else "none was written yet"
        raise ParamGolfError(
            "training diverged: the loss is not finite",
            where=f"step {step}",
            found=loss,
            fix=f"lower train.matrix_lr or train.token_lr (last good checkpoint: {kept})",
        )

    def _pause_for_records(self) -> None:
        """Validate and save a checkpoint when they are due; neither counts as training time."""
        every, save_every = self.config.validate_every, self.config.checkpoint_every
        if every and self.step % every == 0:
            self._validate(self.config.validation_tokens)
        if save_every and self.step % save_every == 0:
            with self.clock.paused():
                self.save_checkpoint()

    def _validate(self, max_tokens: int | None) -> Tally:
        synchronize(self.runtime.device)
        with self.clock.paused():
            score = validate(
                self._network,
                self._tokens.val(),
                self._tokens.val_bytes(),
                self._pass,
                self.runtime,
                length=self._sizes.sequence_length,
                batch_windows=self._batches.windows(self._sizes),
                max_tokens=max_tokens,
            )
        found = {"step": self.step, "val_loss": score.loss, "val_bpb": score.bits_per_byte}
        self._log.write({"event": "validation", **found, "tokens_scored": score.tokens})
        return score

    def finish(self) -> None:
        """Average the weights, validate in full, write the model and the metrics."""
        seconds = self.clock.elapsed
        self._state.load_average()
        self._network = self._state.network
        score = self._validate(None)
        if self.runtime.is_main:
            self._write_model()
        metrics = self._metrics(seconds, score)
        # the weights are written by now: these steps change them
        at = point(self.config, self.step, 0.0)
        metrics["time_split_ms"] = time_split(self._forward_backward, lambda: self._state.step(at))
        if self.runtime.is_main:
            write_json(METRICS, metrics)
            self._checkpoint.remove()
        self.runtime.barrier()

    def _write_model(self) -> None:
        weights = self._network.state_dict()
        model, tensors = without_unreached_phases(self.model, self.phase, weights)
        write_bytes(OUT / "model.safetensors", save(tensors))
        content = {
            "schema": SCHEMA,
            "vocab_size": self._tokens.vocab_size,
            "sequence_length": self._sizes.sequence_length,
            "seed": self.config.seed,
            "model": dataclasses.asdict(model),
        }
        write_json(OUT / "config.json", content)
        if self.phase < len(self.model.recurrence):
            say(f"train: the budget ended in phase {self.phase} of recurrence; the model keeps it")

    def _metrics(self, seconds: float, score: Tally) -> dict[str, Any]:
        speed = self.tokens / seconds if seconds else 0.0
        name = device_name(self.runtime.device)
        peak = peak_flops(name)
        return {
            "parameters": sum(p.numel() for p in self._network.parameters()),
            "steps": self.step,
            "tokens": self.tokens,
            "train_seconds": seconds,
            "tokens_per_second": speed,
            "step_ms_median": statistics.median(self._step_ms) if self._step_ms else 0.0,
            "startup_seconds": self._startup_seconds,
            "peak_memory_bytes": peak_memory(self.runtime.device),
            "mfu": self._flops / seconds / peak / self.runtime.world if peak and seconds else None,
            "val_bpb": score.bits_per_byte,
            "val_loss": score.loss,
            "world_size": self.runtime.world,
            "device": name,
            "torch": torch.__version__,
        }


def without_unreached_phases(
    model: ModelConfig, phase: int, tensors: dict[str, Tensor]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the configuration and the tensors of a model whose training ended in `phase`.

    Phases of recurrence that never began leave the configuration, or evaluation would run an
    order that was never trained; the rows of their untied repeats leave the tensors.
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if phase == len(model.recurrence):
        return model, tensors
    kept = dataclasses.replace(model, recurrence=model.recurrence[:phase])
    config = dataclasses.replace(  # the layers that there are keep their skips and their XSA
        kept,
        skip_rows=model.skip_count,
        xsa_layers=max(0, model.xsa_layers - (model.slots - kept.slots)),
    )
    if model.untied_repeats:
        rows = max(len(order) for order in config.orders)
        tensors |= {name: tensors[name][:rows].contiguous() for name in ("up", "down")}
    return config, tensors


def peak_memory(device: torch.device) -> int:
    """Return the most memory in use so far, bytes: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # POSIX only

    kilobytes_per_unit = 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes_per_unit
