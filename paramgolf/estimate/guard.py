"""What an estimate says against a run, before the machine is paid for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from paramgolf.data.manifests import TokensManifest
from paramgolf.estimate.devices import GIB, kind_of
from paramgolf.estimate.summary import estimate
from paramgolf.recipes import Params


def objections(params: Params, tokens: TokensManifest, gpus: Sequence[str]) -> Iterator[str]:
    """Yield what will not do on GPUs of these names: artifact, memory, tokens, evaluations.

    Only what is sure: an artifact whose estimate is within its tolerance passes. A kind of GPU
    without figures is not judged.
    """
    kind = kind_of(gpus[0])
    if kind is None:
        return
    found = estimate(
        params, code_bytes=params.quantize.fit_code_bytes, device=kind, count=len(gpus)
    )
    artifact, memory, run = found["artifact"], found["memory"], found["run"]
    if artifact["fits"] == "no":
        sizes = f"{artifact['bytes_total']:,} bytes ± {artifact['tolerance_bytes']:,}"
        yield f"the artifact takes {sizes}, package.limit_bytes is {artifact['limit_bytes']:,}"
    if memory["fits"] is False:
        wanted, there = memory["total"] / GIB, memory["capacity"] / GIB
        yield f"a GPU's memory: {wanted:.0f} GiB are needed, {there:.0f} are there"
    if run["tokens"] > tokens.train.tokens:
        passes = run["tokens"] / tokens.train.tokens
        there = f"data/tokens holds {tokens.train.tokens:,}"
        yield f"training reads {run['tokens']:,} tokens, {there}: each is read {passes:,.1f} times"
    limit = params.verify.eval_seconds
    for name, rate in found["evaluations"].items():
        scored = getattr(params, name).max_tokens or tokens.val.tokens
        if rate is not None and scored / rate > limit:
            yield f"{name} takes {scored / rate:,.0f} s, verify.eval_seconds is {limit:,.0f}"
