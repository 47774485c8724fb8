"""A small live network, a text with documents in it, and one process to score them."""

from dataclasses import asdict, replace

import numpy as np
import torch
from process_case import ALONE
from recipe_case import recipe

from paramgolf.data.tokenizer.token_mask import TokenMask
from paramgolf.model.adapters import AdapterSet, adapter_shapes
from paramgolf.model.config import ModelConfig
from paramgolf.model.head import Mask
from paramgolf.model.network import Network, Pass
from paramgolf.schema import parse
from paramgolf.scoring.config import MixtureConfig, SlidingConfig, TttConfig
from paramgolf.scoring.evaluation import score_and_adapt
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.session import Session
from paramgolf.scoring.sliding import score_text
from paramgolf.scoring.text import Text

VOCAB, WINDOW, STRIDE = 61, 16, 4
SMALL = {
    "layers": 3,
    "width": 16,
    "heads": 2,
    "kv_heads": 1,
    "mlp_hidden": 32,
    "rope_dims": 4,
    "parallel_start": 2,
    "recurrence": [{"at": 0.5, "order": [0, 1, 1, 2]}],
}
BASE = recipe("base")
ADAPTER = replace(
    BASE.eval_ttt.adapter, rank=2, alpha=4.0, lr=0.02, beta1=0.5, beta2=0.9, eps=1e-8, decay=0.1
)
DOCUMENTS = replace(
    BASE.eval_ttt.documents, batch_documents=4, chains=2, chunk_tokens=6, prefix_documents=0
)
MIXTURE = replace(
    BASE.eval_sliding.mixture,
    contexts=(1, 2, 3),
    weight=0.3,
    min_share=0.5,
    beta=1.5,
)
SIZES = {"window": WINDOW, "stride": STRIDE, "batch_windows": 5, "mixture": MIXTURE}
SLIDING = replace(BASE.eval_sliding, row_windows=2, **SIZES)
TTT = replace(
    BASE.eval_ttt,
    chunk_tokens=48,
    epochs=2,
    batch_sequences=2,
    lr=0.02,
    adapter=ADAPTER,
    documents=DOCUMENTS,
    **SIZES,
)


def make_network(**changes) -> Network:
    """Every part of the network is alive: parameters that begin at 0 would hide a leak."""
    section = asdict(BASE.model) | SMALL | changes
    network = Network(parse(ModelConfig, section, "model"), VOCAB, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


def with_token(text: Text, position: int, token: int | None = None) -> Text:
    """Return the text with another token at `position`: `token`, or any but BOS."""
    tokens = text.tokens.copy()
    tokens[position] = token or 2 + (tokens[position] - 1) % (VOCAB - 2)
    return Text(tokens, text.byte_counts, text.bos)


def make_text(count: int, seed: int = 5) -> Text:
    """`count` targets in documents of about 20 tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, VOCAB, count + 1).astype(np.uint16)
    tokens[rng.random(count + 1) < 0.05] = 1
    tokens[0] = 1
    byte_counts = rng.integers(1, 9, count).astype(np.uint16)
    byte_counts[tokens[1:] == 1] = 0
    return Text(tokens, byte_counts, bos=1)


def echoing_text(count):
    """A text that repeats parts of itself, so that contexts come again."""
    rng = np.random.default_rng(2)
    tokens = make_text(count).tokens
    for _ in range(count // 15):
        begin, source = rng.integers(12, count - 8), rng.integers(1, 12)
        tokens[begin : begin + 8] = np.where(
            tokens[source : source + 8] == 1, 5, tokens[source : source + 8]
        )
    return Text(tokens, np.ones(count, dtype=np.uint16), 1)


def make_mask(text: Text) -> Mask:
    """A mask that forbids half of all pairs, but none of the text."""
    allowed = np.random.default_rng(6).random((VOCAB + 1, VOCAB)) < 0.5
    allowed[text.tokens[:-1], text.tokens[1:]] = True
    words = torch.from_numpy(TokenMask(allowed, -1, ()).words)
    return Mask(words, -1, torch.zeros(0, dtype=torch.int64))


def make_mixture(kind: str, **changes) -> MixtureConfig:
    return replace(MIXTURE, kind=kind, **changes)


def make_sliding(kind: str = "none", **changes) -> SlidingConfig:
    """Make parameters of a sliding window, with a mixture of this kind."""
    return replace(SLIDING, mixture=make_mixture(kind), **changes)


def make_config(**changes) -> TttConfig:
    return replace(TTT, **changes)


def make_lora_config(mode, adapter=None, documents=None, stream=None, **changes) -> TttConfig:
    """Make parameters of a lora mode, with changes of its parts."""
    return make_config(
        mode=mode,
        adapter=replace(ADAPTER, **(adapter or {})),
        documents=replace(DOCUMENTS, **(documents or {})),
        stream=replace(TTT.stream, **(stream or {})),
        **changes,
    )


def evaluated(
    network: Network, text: Text, config: SlidingConfig | TttConfig, session: Session | None = None
) -> Ledger:
    """Score the text in whichever way the parameters say."""
    score = score_text if isinstance(config, SlidingConfig) else score_and_adapt
    return score(network, text, config, session or Session(ALONE))


def adapt_plainly(network, text, first, last, config, *, layers=None, midway=lambda *_: None):
    """Score one document by itself, with AdamW written out; float32 as the network is.

    Adapters are in the last `layers` of the order, None: in all. `midway` says with what a pass
    over tokens begin..end begins.
    """
    order, a = network.config.orders[-1], config.adapter
    owners = order[-layers:] if layers else order
    shapes = adapter_shapes(network.config, VOCAB, owners, a.targets)
    device = torch.device("cpu")
    adapters = AdapterSet(shapes, rank=a.rank, alpha=a.alpha, rows=1, seed=a.seed, device=device)
    leaves = adapters.parameters()
    mean, square = ([torch.zeros_like(leaf) for leaf in leaves] for _ in range(2))
    tokens, result = torch.from_numpy(text.tokens.astype(np.int64)), []
    size = config.documents.chunk_tokens
    for step, begin in enumerate(range(first, last, size), start=1):
        end, context = min(begin + size, last), max(first, begin + size - WINDOW)
        inputs, targets = tokens[context:end], tokens[context + 1 : end + 1]
        options = Pass(order, adapters=adapters.pairs(), midway=midway(context, end))
        nats = network.nll(inputs[None], targets[None], options)[0, begin - context :]
        result.append(nats.detach())
        gradients = torch.autograd.grad(nats.mean(), leaves)
        with torch.no_grad():
            for leaf, m, s, g in zip(leaves, mean, square, gradients, strict=True):
                m.lerp_(g, 1 - a.beta1)
                s.lerp_(g * g, 1 - a.beta2)
                leaf.mul_(1 - a.lr * a.decay)
                root = (s / (1 - a.beta2**step)).sqrt() + a.eps
                leaf.sub_(a.lr * m / (1 - a.beta1**step) / root)
    return torch.cat(result).numpy()
