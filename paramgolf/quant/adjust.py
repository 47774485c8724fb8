"""The last adjustment: train scales and vectors of the quantized network against the trained one.

When all integers are chosen, each row's scale and each float16 parameter gets a factor that starts
at 1. Adam trains these factors on calibration text; the loss is the Kullback-Leibler divergence of
the quantized network's predictions from the trained network's. This compensates for the combined
effect of the errors of all matrices, which GPTQ, solving one matrix at a time, cannot see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from paramgolf.codec.container import dequantized
from paramgolf.model.network import Network, Pass
from paramgolf.model.shapes import FROZEN
from paramgolf.progress import track
from paramgolf.quant.calibrate import trained_network
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.divergence import divergence, log_probabilities
from paramgolf.quant.grids import round_scales, shorten
from paramgolf.quant.sharing import agreed
from paramgolf.quant.trained import Trained
from paramgolf.runtime import Runtime

SEQUENCES = 8  # a step
# of the factors' logarithms; the rate falls to 0 on a line
RATE, BETAS, EPSILON = 2e-3, (0.9, 0.95), 1e-8


def adjust(
    trained: Trained,
    tensors: dict[str, Tensor],
    texts_NT: Tensor,
    config: QuantizeConfig,
    runtime: Runtime,
) -> dict[str, Tensor]:
    """Return the tensors with scales and vectors trained for `config.adjust_steps` steps.

    Integers do not change. The embedding's scales do not either: most tokens are too rare in the
    texts, int64 [N, T]. Trained tensors are rounded as before. All processes pass the same texts
    and share those of a step; only the main process needs to pass the tensors.
    """
    tensors = agreed(tensors, runtime)
    plain = replace(runtime, compile=False)
    teacher, state = trained_network(trained, plain), dequantized(tensors)
    network = _Logits(trained_network(replace(trained, state=state), plain))
    factors = Factors(state, tensors, runtime.device)
    logs = list(factors.logs.values())
    optimizer = Adam(logs)
    # shuffled, so that neighboring windows of the training text are in different steps
    order = torch.randperm(len(texts_NT), generator=torch.Generator().manual_seed(0))
    batches = texts_NT[order].split(SEQUENCES)
    # the teacher runs once per batch; with recipe best's 64 texts this is 4.3 GB over all devices
    asked: dict[int, Tensor] = {}
    count, show = config.adjust_steps, runtime.is_main
    for step in track(range(count), "adjust", total=count, show=show):
        number = step % len(batches)
        batch_BT = batches[number]
        own_BT = batch_BT[runtime.rank :: runtime.world].to(runtime.device)
        gradients = tuple(map(torch.zeros_like, logs))
        if len(own_BT):
            if number not in asked:
                asked[number] = log_probabilities(teacher, own_BT)
            weights = {f"network.{name}": weight for name, weight in factors.weights().items()}
            found = torch.log_softmax(torch.func.functional_call(network, weights, (own_BT,)), -1)
            loss = divergence(asked[number], found) * (len(own_BT) / len(batch_BT))
            gradients = torch.autograd.grad(loss, logs, materialize_grads=True)
        shared = [runtime.sum(gradient.contiguous()) for gradient in gradients]
        optimizer.step(shared, RATE * (1 - step / count))
    return tensors | factors.learned(tensors, config)


class Adam:
    """Adam (arXiv 1412.6980) with the rate given at each step.

    torch.optim's is not used since it imports PyTorch's compiler, which takes 1 to 5 s, as long as
    all steps together, and the adjustment counts as training time.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters, self._steps = parameters, 0
        self._means, self._squares = ([*map(torch.zeros_like, parameters)] for _ in range(2))

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Take one step; gradients are in the order of the parameters."""
        self._steps += 1
        seen = [1 - beta**self._steps for beta in BETAS]  # both averages begin at zero
        averages = zip(self._parameters, gradients, self._means, self._squares, strict=True)
        for parameter, gradient, mean, square in averages:
            mean.lerp_(gradient, 1 - BETAS[0])
            square.lerp_(gradient.square(), 1 - BETAS[1])
            parameter -= rate * (mean / seen[0]) / ((square / seen[1]).sqrt() + EPSILON)


class Factors:
    """Weights of a quantized network, as functions of the logarithms of their factors.

    Attributes:
        logs: by the name of a stored tensor, NAME.scales or NAME, and of its shape.
    """

    def __init__(
        self, state: dict[str, Tensor], tensors: dict[str, Tensor], device: torch.device
    ) -> None:
        learning = [name for name in state if name not in (*FROZEN, "embedding")]
        self._fixed = {name: state[name].to(device) for name in learning}
        self._sources = {
            name: f"{name}.scales" if f"{name}.scales" in tensors else name for name in learning
        }
        self.logs = {
            source: torch.zeros(tensors[source].shape, device=device, requires_grad=True)
            for source in self._sources.values()
        }

    def weights(self) -> dict[str, Tensor]:
        """Return the weights that learn, float32."""
        weights = {}
        for name, source in self._sources.items():
            factor = self.logs[source].exp()
            weights[name] = self._fixed[name] * (factor if source == name else factor.unsqueeze(-1))
        return weights

    def learned(self, tensors: dict[str, Tensor], config: QuantizeConfig) -> dict[str, Tensor]:
        """Return the stored tensors that have factors times these, rounded to their digits."""
        found = {}
        for name, source in self._sources.items():
            exact = tensors[source].float() * self.logs[source].detach().exp().cpu()
            if source == name:
                found[source] = shorten(exact.half(), config.vector_digits)
            else:
                found[source] = shorten(round_scales(exact), config.scale_digits)
        return found


class _Logits(nn.Module):
    """A network whose call returns logits, as `functional_call` needs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.options = Pass(order=network.config.orders[-1])

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.network.logits(tokens_BT, self.options)
