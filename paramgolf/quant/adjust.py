"""The last adjustment: scales and vectors learn what integers cannot say any more.

With all integers chosen, the scale of each row, and each number that stays float16, gets a factor
that starts at 1 and learns by Adam to bring the quantized network's tokens to the trained one's:
the loss is their Kullback-Leibler divergence, on calibration text. It makes up for what errors of
all matrices do together, of which a solver of one matrix knows nothing.
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
from paramgolf.quant.calibrate import load_network
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
    """Return the tensors, with scales and vectors that learned for `config.adjust_steps` steps.

    Integers stay, and so do the embedding's rows, of which most are of tokens that the texts, int64
    [N, T], hold too few of. What has learned is rounded as it was before. Processes share the texts
    of a step, which all have; the tensors are the main one's.
    """
    tensors = agreed(tensors, runtime)
    plain = replace(runtime, compile=False)
    teacher = load_network(trained, "trained").on(plain)
    state = dequantized(tensors)
    network = _Logits(load_network(replace(trained, state=state), "trained").on(plain))
    factors = Factors(state, tensors, runtime.device)
    logs = list(factors.logs.values())
    optimizer = Adam(logs)
    # neighbours in the training text come in different steps
    order = torch.randperm(len(texts_NT), generator=torch.Generator().manual_seed(0))
    batches = texts_NT[order].split(SEQUENCES)
    # the trained network is asked once for each batch: of best's 64 texts, 4.3 GB over all devices
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

    Not torch.optim's: to make one imports PyTorch's compiler, which takes 1 to 5 s, as long as all
    steps; and the adjustment's seconds count as training's.
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
    """A network whose call returns logits, as `functional_call` wants it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.options = Pass(order=network.config.orders[-1])

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.network.logits(tokens_BT, self.options)
