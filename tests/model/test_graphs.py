"""What PyTorch's compiler sees of a network: no views, and as few graphs as there are kinds."""

from __future__ import annotations

import functools

import torch
from recipe_case import moved

from paramgolf.data.special_tokens import BOS
from paramgolf.model.attention import attend_sdpa, find_segments
from paramgolf.model.backend import Backend, compiled
from paramgolf.model.block import block
from paramgolf.model.config import RecurrencePhase
from paramgolf.model.network import Network, Pass

VOCAB = 64


def tokens() -> torch.Tensor:
    return torch.randint(4, VOCAB, (2, 25), generator=torch.Generator().manual_seed(1))


def test_blocks_read_no_views(tiny_model):
    """Compiled code with symbolic sizes asks what views are of, which torch 2.11 may refuse."""
    network = moved(Network(tiny_model(), VOCAB, seed=1))
    read = []

    def watched(lanes, weights, context, kind):
        read.extend([*lanes, context.x0, context.cos, context.sin, *(context.skip or ())])
        return block(lanes, weights, context, kind)

    network = network.with_backend(Backend(block=watched))
    network.nll(tokens()[:, :-1], tokens()[:, 1:], Pass(network.config.orders[-1]))
    assert read
    assert not any(x._is_view() for x in read)


def test_a_kind_of_block_is_one_graph(tiny_model):
    """Encoder, decoder, and decoder in parallel: the first decoder reads one lane twice."""
    repeated = RecurrencePhase(at=0.5, order=(0, 1, 2, 1, 2, 3, 4, 5))
    model = tiny_model(layers=6, parallel_start=4, recurrence=(repeated,))
    network = Network(model, VOCAB, seed=1)
    torch._dynamo.reset()
    graphs = []

    def keep(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    as_graphs = torch.compile(block, dynamic=False, backend=keep)
    network = network.with_backend(Backend(block=as_graphs))
    text = tokens()
    for order in model.orders:
        network.nll(text[:, :-1], text[:, 1:], Pass(order)).sum().backward()
        assert len(graphs) == 3


def test_longer_documents_need_no_graph(tiny_model, monkeypatch):
    """Neither their length nor the number of their bounds is told by the graphs of a block."""

    def attend(q, k, v, segments):
        return attend_sdpa(q, k, v, segments) / segments.longest

    graphs, compile_as_is = [], torch.compile

    def keep(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(compile_as_is, backend=keep))
    network = Network(tiny_model(), VOCAB, seed=1)
    torch.nn.init.normal_(network.get_parameter("o"))  # zero at first, and nothing would be seen
    torch._dynamo.reset()
    network = network.with_backend(compiled(Backend(attend=attend)))
    text = tokens()
    found = []
    for longest in (5, 8):
        segments = find_segments(text[:, :-1], BOS, longest, multiple=8 * longest)
        options = Pass(network.config.orders[-1], document_tokens=longest, segments=segments)
        nll = network.nll(text[:, :-1], text[:, 1:], options)
        nll.sum().backward()
        found.append((len(graphs), nll.detach()))
    assert found[0][0] == found[1][0]
    assert not torch.equal(found[0][1], found[1][1])
