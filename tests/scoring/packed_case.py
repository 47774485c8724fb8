"""A package, and the tokens that it is scored on."""

import dataclasses

import numpy as np
import torch
from scoring_case import VOCAB, make_network, make_text
from shard_files import write_token_set

from paramgolf.codec.dequantize import dequantize
from paramgolf.codec.writer import encode
from paramgolf.model.network import Network
from paramgolf.model.shapes import MATRICES


def write_package(folder) -> Network:
    """Write model.bin and tokens; return the network that the package must turn into."""
    network = make_network()
    tensors, bits = {}, {}
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in (*MATRICES, "embedding"):
                scales = (parameter.abs().amax(-1) / 127).half()
                integers = (parameter / scales.float().unsqueeze(-1)).round().clamp(-127, 127)
                tensors |= {f"{name}.integers": integers.to(torch.int8), f"{name}.scales": scales}
                bits[name] = 8
                parameter.copy_(dequantize(tensors[f"{name}.integers"], scales))
            else:
                tensors[name] = parameter.detach().half()
                parameter.copy_(tensors[name])
    config = {
        "model": dataclasses.asdict(network.config),
        "vocab_size": VOCAB,
        "sequence_length": 16,
        "quantize": {"bits": bits},
    }
    (folder / "model.bin").write_bytes(encode(tensors, config, "brotli")[0])
    write_tokens(folder)
    return network


def write_tokens(folder):
    text = make_text(170)
    byte_counts = np.concatenate([[0], text.byte_counts]).astype(np.uint16)
    write_token_set(folder, val=[text.tokens], val_bytes=[byte_counts], vocab_size=VOCAB)
