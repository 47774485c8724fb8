"""Every score of one packed model beside its seconds: `python benchmarks/adaptation.py`.

The same first tokens are scored by documents, and adapted in one way after the other: as pg#2135
published it, with a tilt; with adapters in the last layers alone, mask and n-grams beside it; as
published with these. Then come the others: plain and strided scores, without and with mask and
mixtures, and other adapters, rates, chunks and windows. Writes after each way bits per byte, the
gain over documents and seconds (of scoring; compiling apart), and what gain and seconds of the
ways with mask and n-grams are as against the published way. Ways are left out once `--seconds` have
passed. On four GPUs, a quarter of the ways on each:

    for i in 0 1 2 3; do CUDA_VISIBLE_DEVICES=$i python benchmarks/adaptation.py --share $i/4 & done

`--ways` names some of the ways, in their order; gains are over `documents`, if that came before.
With several GPUs visible each way is scored by all of them.
"""

from __future__ import annotations

from paramgolf.process import start_process

start_process()  # before numpy is loaded, whose threads would spin: as in the stages

import argparse
import dataclasses
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tables import Row, check_names, write_results

from paramgolf.bits_per_byte import bits_per_byte
from paramgolf.clock import seconds_since_start
from paramgolf.codec.container import load_package
from paramgolf.data.token_set import TOKENS_PATH, open_tokens
from paramgolf.data.tokenizer.token_mask import mask_of
from paramgolf.launch import launch
from paramgolf.model.head import Allowed, Head
from paramgolf.model.token_mask import masked
from paramgolf.params import load_params
from paramgolf.program import exit_on_fault
from paramgolf.progress import say
from paramgolf.recipes import check, compose
from paramgolf.runtime import Runtime, processes, synchronize
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.scoring.evaluation import build_network, score_and_adapt
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.session import Session
from paramgolf.scoring.sliding import score_text
from paramgolf.scoring.stage import PACKAGE_PATH
from paramgolf.scoring.text import find_documents, load_text

RECIPES = Path(__file__).parents[1] / "recipes"
WITHOUT_Q_V = ("k", "o", "mlp", "head")  # pg#2008
FIXED = {"documents": "documents", "plain": "strided", "strided": "strided"}  # eval_sliding.mode
MIXED = {"tilt": "pr2135", "blend": "best"}  # the recipes whose mixtures are tried
# what each way is tried with: the name's end, the mask, the kind of mixture
BESIDES = (
    ("", False, "none"),
    (", tilt", False, "tilt"),
    (", mask and n-grams", True, "blend"),
    (", mask", True, "none"),
    (", n-grams", False, "blend"),
)
PUBLISHED, BEST = "adapted, tilt", ", mask and n-grams"
TIMES_GAIN, TIMES_SECONDS = 1.3, 0.7  # of ways with the end of BEST, beside PUBLISHED
DEPTHS = 7, 5, 3  # last layers with adapters, of the 14 of recipe best's order
EVERY_END = "last 7"  # recipe best's, tried with each of BESIDES
FIRST = (  # what decides
    PUBLISHED,
    f"last 5{BEST}",
    f"last 5, twice the rate{BEST}",
    f"last 7{BEST}",
    f"last 3{BEST}",
    f"last 7, twice the rate{BEST}",
    f"adapted{BEST}",
    f"last 3, twice the rate{BEST}",
    f"last 5, chunks of 32{BEST}",
)
SMALL = {"rank": 4, "alpha": 7.0}
LOSS_TOKENS = 32_768


class Bench:
    """One network, scored in one way after the other; its weights are put back in between."""

    def __init__(self, runtime: Runtime, options: argparse.Namespace) -> None:
        self.runtime, self.options = runtime, options
        self.packed = load_package(options.package)
        self.plain = build_network(self.packed, runtime)
        self.text = load_text(options.data, self.packed.vocab_size, options.tokens or None)
        start = time.perf_counter()
        self.masked = masked(self.plain, open_tokens(options.data), self.text.tokens)
        self.mask_seconds = time.perf_counter() - start
        recipe = check(compose(options.recipe, RECIPES), where=options.recipe)
        mixtures = {
            kind: check(compose(name, RECIPES), where=name).eval_ttt.mixture
            for kind, name in MIXED.items()
        }
        none = dataclasses.replace(mixtures["tilt"], kind="none")
        self.mixtures = {"none": none, **mixtures}
        self.sliding = dataclasses.replace(recipe.eval_sliding, mixture=none)
        sizes = {"batch_documents": options.batch_documents, "chains": options.chains}
        adapt = dataclasses.replace(recipe.eval_ttt, mixture=none)
        self.adapt = self.documents(adapt, **sizes)
        if options.small:
            sizes = {"window": 128, "batch_windows": 8}
            self.sliding = dataclasses.replace(self.sliding, **sizes)
            sizes |= {"chunk_tokens": 1024, "stride": 64, "batch_sequences": 4}
            self.adapt = dataclasses.replace(adapter(self.adapt, **SMALL), **sizes)
        self.rows: list[Row] = []
        part, parts = map(int, options.share.split("/"))
        every = list(dict.fromkeys([*FIRST, *self.fixed(), *self.forms()]))[part::parts]
        self.ways = options.ways or list(dict.fromkeys(["documents", *every]))

    def measure(self, name: str, score: Callable[[Session], Ledger]) -> None:
        """Add the rows of a way; its gain is over documents, where they were scored before."""
        session = Session(self.runtime)
        ledger = score(session)
        ledger.close()
        bpb = bits_per_byte(ledger.nats.sum(), int(self.text.byte_counts.sum(dtype=np.int64)))
        parts = session.seconds
        seconds = sum(value for part, value in parts.items() if part != "compile")
        gc.collect()  # recorded passes hold memory
        if not self.runtime.is_main:
            return
        say(f"{name}: {bpb:.5f} bits per byte, {dict(parts)}")
        figure, begin = self.figure(name), len(self.rows)
        self.add(figure, bpb, "bits/byte", "lower")
        before = self.known(self.figure("documents"))
        if before is not None and name != "documents":
            self.add(f"{figure}: gain over documents", before - bpb, "bits/byte", "higher")
        self.add(f"{figure}: seconds", seconds, "s", "lower")
        self.add(f"{figure}: tokens a second", len(self.text) / seconds, "", "higher")
        self.add(f"{figure}: compiling", parts.get("compile", 0.0), "s", "lower")
        if name.endswith(BEST):
            self.decide(figure)
        for row in self.rows[begin:]:
            say(f"  {row.figure}: {row.value:.5g} {row.unit}")
        write_results("adaptation", self.rows, show=False)

    def decide(self, figure: str) -> None:
        """Add a way's gain and seconds as against those of the way that was published."""
        published = self.figure(PUBLISHED)
        for end, target, better in (
            ("gain over documents", TIMES_GAIN, "higher"),
            ("seconds", TIMES_SECONDS, "lower"),
        ):
            beside, own = (self.known(f"{one}: {end}") for one in (published, figure))
            if beside is not None and own is not None:
                self.add(f"{figure}: {end} / published", own / beside, "", better, target)

    def add(
        self,
        figure: str,
        value: float,
        unit: str,
        better: Literal["higher", "lower"],
        target: float | None = None,
    ) -> None:
        """Add a row."""
        self.rows.append(Row(figure, value, unit, None, target, better))

    def known(self, figure: str) -> float | None:
        """Return a value that was measured before."""
        return next((row.value for row in self.rows if row.figure == figure), None)

    def figure(self, name: str) -> str:
        """Return how the rows of a way are named."""
        world = self.runtime.world
        return f"{name}, {len(self.text):,} tokens" + (f", {world} GPUs" if world > 1 else "")

    def fixed(self) -> dict[str, tuple[bool, SlidingConfig]]:
        """Return the ways to score with the weights as they are: whether masked, and how."""
        ways = {}
        for end, mask, kind in BESIDES:
            for name, mode in FIXED.items():
                stride = self.sliding.window if name == "plain" else self.sliding.stride
                changes = {"mode": mode, "stride": stride, "mixture": self.mixtures[kind]}
                ways[name + end] = mask, dataclasses.replace(self.sliding, **changes)
        return ways

    def run(self) -> None:
        """Score in every way that is asked for."""
        fixed, forms = self.fixed(), self.forms()
        check_names(self.ways, {**fixed, **forms})
        targets = self.adapt.adapter.targets
        for index, name in enumerate(self.ways):
            late = seconds_since_start() > self.options.seconds
            if self.runtime.agree(float(late)):
                rest = len(self.ways) - index
                say(f"after {self.options.seconds:.0f} s {rest} ways left out, from {name!r} on")
                return
            if name == "plain":
                self.mask_rows()
            mask, config = {**fixed, **forms}[name]
            if name in forms and config.adapter.targets != targets:
                targets = config.adapter.targets
                self.renew()
            score = score_and_adapt if name in forms else score_text
            network = self.masked if mask else self.plain
            self.plain.load_state_dict(self.packed.state)  # both networks have these parameters
            self.measure(name, lambda s, f=score, n=network, c=config: f(n, self.text, c, s))

    def renew(self) -> None:
        """Build the networks anew, without the graphs so far: they would exceed their limit."""
        torch._dynamo.reset()
        mask = self.masked._mask
        self.plain = build_network(self.packed, self.runtime)
        self.masked = self.plain.with_mask(mask)

    def forms(self) -> dict[str, tuple[bool, TttConfig]]:
        """Return the forms of adaptation: whether masked, and how."""
        base = self.adapt
        # the longest twentieth, as in the contest
        prefix = max(1, len(find_documents(self.text)[0]) // 20)
        published = self.documents(base, prefix_documents=max(prefix, base.documents.phases))
        mixed = {
            f"{name}{end}": (mask, dataclasses.replace(form, mixture=self.mixtures[kind]))
            for name, form in {"adapted": published, **self.last_layers(published)}.items()
            for end, mask, kind in BESIDES
            if name in ("adapted", EVERY_END) or end in ("", BEST)
        }
        others = {
            "no q and v": adapter(published, targets=WITHOUT_Q_V),
            "no phases": self.documents(base, phases=0),
            "chunks of 32": self.documents(published, chunk_tokens=32),
        }
        return mixed | {f"adapted, {name}": (False, form) for name, form in others.items()}

    def last_layers(self, published: TttConfig) -> dict[str, TttConfig]:
        """Return the forms with adapters in the last layers alone."""
        forms = {}
        window = 128 if self.options.small else 3072
        for depth in DEPTHS:
            form = adapter(published, last_layers=depth)
            forms |= {
                f"last {depth}": form,
                f"last {depth}, twice the rate": adapter(form, lr=2 * form.adapter.lr),
                f"last {depth}, rate 7e-5": adapter(form, lr=7e-5),  # pg#2033
                f"last {depth}, window 3072": dataclasses.replace(form, window=window),
                f"last {depth}, chunks of 32": self.documents(form, chunk_tokens=32),
                f"last {depth}, no q and v": adapter(form, targets=WITHOUT_Q_V),
            }
        return forms

    def documents(self, config: TttConfig, **changes: Any) -> TttConfig:
        """Return `config` with changes of its documents."""
        return dataclasses.replace(
            config, documents=dataclasses.replace(config.documents, **changes)
        )

    def mask_rows(self) -> None:
        """Add what the mask costs, and how much it forbids."""
        mask = mask_of(open_tokens(self.options.data))
        share = float((1 - mask.allowed.mean(1))[self.text.tokens[:-1]].mean())
        self.rows += [
            Row("mask: seconds of the table", self.mask_seconds, "s", None, None, "lower"),
            Row("mask: share of the vocabulary", 100 * share, "%", None, None, "higher"),
        ]
        if self.runtime.device.type == "cuda":
            before, after = (self.loss_milliseconds(with_mask=x) for x in (False, True))
            figure = f"mask: loss and gradient of {LOSS_TOKENS:,} tokens"
            self.rows.append(Row(figure, after, "ms", before, None, "lower"))
        write_results("adaptation", self.rows, show=False)

    def loss_milliseconds(self, *, with_mask: bool) -> float:
        """Return the time of the fused loss and its gradient, of which products are a part."""
        network, device = self.masked, self.runtime.device
        nll, mask = network.backend.operations.nll, network._mask
        embedding = network.get_parameter("embedding").detach().to(network.backend.dtype)
        hidden = torch.randn(1, LOSS_TOKENS, embedding.shape[1], device=device).to(embedding.dtype)
        tokens = torch.from_numpy(self.text.tokens[: LOSS_TOKENS + 1].astype(np.int64)).to(device)
        allowed = Allowed(mask.words, tokens[None, :-1]) if with_mask else None
        head = Head(embedding.requires_grad_(), network.config.softcap, allowed=allowed)
        begin = 0.0
        for step in range(30):
            if step == 10:
                synchronize(device)
                begin = time.perf_counter()
            nll(hidden.requires_grad_(), tokens[None, 1:], head).sum().backward()
        synchronize(device)
        return 1000 * (time.perf_counter() - begin) / 20


def adapter(config: TttConfig, **changes: Any) -> TttConfig:
    """Return `config` with changes of its adapters."""
    return dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, **changes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, default=PACKAGE_PATH)
    parser.add_argument("--data", type=Path, default=TOKENS_PATH)
    parser.add_argument("--recipe", default="pr2135", help="whose windows and adaptation are used")
    parser.add_argument("--tokens", type=int, default=400_000, help="validation tokens, 0: all")
    # fewer than a recipe's: so phases come as often as in a longer text
    parser.add_argument("--batch-documents", type=int, default=16)
    parser.add_argument("--chains", type=int, default=1, help="at least as many as GPUs")
    parser.add_argument("--ways", nargs="*", metavar="WAY", help="some of the ways, by their names")
    parser.add_argument("--share", default="0/1", metavar="I/N", help="the I-th of N parts of them")
    parser.add_argument("--seconds", type=float, default=230.0, help="begin no way after so many")
    parser.add_argument("--small", action="store_true", help="small windows and adapters, on a CPU")
    options = parser.parse_args()
    launch(torch.cuda.device_count() or 1)
    with processes(load_params(RuntimeConfig, "runtime")) as runtime:
        bench = Bench(runtime, options)
        bench.run()
        if runtime.is_main:
            write_results("adaptation", bench.rows)


if __name__ == "__main__":
    with exit_on_fault():
        main()
