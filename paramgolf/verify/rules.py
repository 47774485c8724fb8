"""The rules of the contest, R1 to R11, as checks over the metrics of the stages; R15 binds those.

docs/legality.md says where each rule comes from, and which code and test hold what no metric can
show. A rule is a function of the run that returns its verdict; a broken rule is not an exception,
so that all are listed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramgolf.data.token_set import TOKENS_PATH, open_tokens
from paramgolf.files import write_json
from paramgolf.metrics import METRICS, STAGES, Metrics, load_metrics, need
from paramgolf.params import read_yaml
from paramgolf.stage_code import HASHES
from paramgolf.verify.bindings import (
    EVALUATORS,
    PACKAGE,
    disagreements,
    documents_path,
    unbound,
)
from paramgolf.verify.config import VerifyConfig
from paramgolf.verify.recorded import check_recorded

DVC_YAML = Path("dvc.yaml")
# bounds of what the evaluators' probes find (paramgolf/scoring/probe.py)
CAUSAL_ERROR = 1e-3  # of a logit; the same kernels see the same shapes, so 0 is usual
SUM_ERROR = 1e-4  # of probabilities
SCORE_ERROR = 0.02  # nats, in the mean: products in bfloat16 round otherwise in the compiled head
EVALUATOR_DATA = {"artifacts/package/model.bin", "data/tokens"}
FIX = "docs/legality.md explains the rules; verify.enforce=false records it and no more"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the rules look at: limits, metrics, the plan's stages, the number of targets.

    `sizes` are the bytes of the package's files by name, `unbound` what keeps metrics and files
    apart.
    """

    limits: VerifyConfig
    metrics: Metrics
    stages: Mapping[str, Mapping[str, Any]]
    targets: int
    sizes: Mapping[str, int]
    unbound: Sequence[str]

    def get(self, stage: str, key: str) -> Any:
        """Return a metric of a stage."""
        return self.metrics.get(stage, key)

    def read(self, stage: str) -> Sequence[Mapping[str, Any]]:
        """Return the files that a stage says it read; that it says nothing breaks R15."""
        files: Sequence[Mapping[str, Any]] = self.metrics.by_stage[stage].get("read", ())
        return files


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a rule is kept (None: it does not apply), and why."""

    passed: bool | None
    reason: str

    @property
    def outcome(self) -> str:
        """The verdict in a word or two."""
        return {True: "pass", False: "fail", None: "not applicable"}[self.passed]


def load_evidence(limits: VerifyConfig, root: Path) -> Evidence:
    """Read the metrics of all stages, dvc.yaml and the manifest of the tokens."""
    metrics = load_metrics(STAGES, root)
    check_recorded(metrics, root)
    targets = len(open_tokens(root / TOKENS_PATH).val()) - 1  # nothing predicts the first token
    files = {name: root / PACKAGE / name for name in ("model.bin", "train_gpt.py")}
    sizes = {name: path.stat().st_size for name, path in files.items() if path.is_file()}
    apart = [*unbound(metrics.by_stage, root), *disagreements(metrics, root)]
    stages = need(read_yaml(root / DVC_YAML, aliases=True), "stages", DVC_YAML)
    return Evidence(limits, metrics, stages, targets, sizes, apart)


def size(run: Evidence) -> Verdict:
    """R1: code and weights together fit the limit, as they lie on disk."""
    total, limit = run.get("package", "bytes_total"), run.get("package", "limit_bytes")
    code, model = run.get("package", "bytes_code"), run.get("package", "bytes_model")
    parts = f"{code:,} of code + {model:,} of weights = {total:,} bytes; limit {limit:,}"
    as_recorded = run.sizes == {"model.bin": model, "train_gpt.py": code}
    if not as_recorded:
        parts += f"; on disk: {', '.join(f'{name} {size:,}' for name, size in run.sizes.items())}"
    return Verdict(as_recorded and total == code + model and total <= limit, parts)


def training_time(run: Evidence) -> Verdict:
    """R2: every reading of training text lies within the training time."""
    train, calibrate = run.get("train", "train_seconds"), run.get("calibrate", "seconds")
    limit = run.limits.train_seconds
    if run.get("calibrate", "source") == "train":
        adjust = run.get("quantize", "adjust_seconds")  # it reads the text of calibrate
        total = train + calibrate + adjust
        parts = f"{train:.1f} s training + {calibrate:.1f} s calibration"
        parts += f" + {adjust:.1f} s adjustment = {total:.1f} s"
    else:
        total = train
        parts = f"{train:.1f} s training; calibration reads no training text"
    return Verdict(total <= limit, f"{parts}; limit {limit:g} s")


def evaluation_time(run: Evidence) -> Verdict:
    """R3: each evaluation lies within its time."""
    limit = run.limits.eval_seconds
    seconds = {stage: run.get(stage, "seconds") for stage in EVALUATORS}
    parts = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
    passed = all(0 < value <= limit for value in seconds.values())
    return Verdict(passed, f"{parts}; limit {limit:g} s each")


def evaluators_read(run: Evidence) -> Verdict:
    """R4: the evaluators read the packed model and the tokens, and nothing else."""
    extra = []
    for stage in EVALUATORS:
        deps = need(need(run.stages, stage, DVC_YAML), "deps", f"{DVC_YAML}, stage {stage}")
        paths = {os.path.normpath(dep) for dep in deps}  # ./data/tokens is data/tokens
        data = paths - {str(HASHES / f"{stage}.sha256")}
        data |= {_data_of(used["path"]) for used in run.read(stage)}
        data.discard(str(documents_path(stage)))  # which it wrote, and is named to be bound
        extra += [f"{stage} also reads {dep}" for dep in sorted(data - EVALUATOR_DATA)]
        extra += [f"{stage} does not read {dep}" for dep in sorted(EVALUATOR_DATA - data)]
        if count := run.get(stage, "train_tokens_read"):
            extra.append(f"{stage} reads {count:,} training tokens")
    read = f"data deps: {', '.join(sorted(EVALUATOR_DATA))}"
    return Verdict(not extra, "; ".join(extra) or read)


def _data_of(path: str) -> str:
    """Return the folder of an evaluator's data that a file lies in; the file if it is none."""
    path = os.path.normpath(path)
    return next((one for one in EVALUATOR_DATA if path.startswith(f"{one}/")), path)


def validation_unseen(run: Evidence) -> Verdict:
    """R5: no training, calibration or tokenizer saw validation text."""
    overlap, source = run.get("audit", "train_val_overlap"), run.get("calibrate", "source")
    train, val = run.get("audit", "documents_train"), run.get("audit", "documents_val")
    texts = (
        f"{overlap} of {val:,} validation documents are among {train:,} training documents, "
        f"near copies of {run.get('audit', 'near_copies'):,}"
    )
    passed = overlap == 0 and source in ("train", "generate")
    return Verdict(passed, f"{texts}; calibration reads text of source `{source}`")


def causal(run: Evidence) -> Verdict:
    """R6: a score depends on the package and the text before it."""
    ledger = run.get("eval_ttt", "ledger")
    updates, trained, targets = (ledger[key] for key in ("updates", "targets_trained", "targets"))
    fixed, passed = run.get("eval_sliding", "ledger"), trained <= targets
    reasons = []
    if fixed["updates"] or fixed["targets_trained"]:
        passed = False
        reasons.append(f"eval_sliding learnt from {fixed['targets_trained']:,} targets")
    for stage in EVALUATORS:
        probe = run.get(stage, "probe")
        passed &= bool(run.get(stage, "ledger")["score_first"])
        passed &= probe["passes"] > 0 and probe["causal_error"] <= CAUSAL_ERROR
        reasons.append(
            f"{stage}: a later token was changed in {probe['passes']} passes, logits before it "
            f"moved by {probe['causal_error']:.1e}"
        )
    learned = f"{updates:,} updates learnt from {trained:,} of {targets:,} targets"
    return Verdict(passed, f"{'; '.join(reasons)}; {learned}, all scored before")


def normalized(run: Evidence) -> Verdict:
    """R7: a score is -ln p of a distribution over the full vocabulary, mixture included."""
    reasons, passed = [], True
    for stage in EVALUATORS:
        probe = run.get(stage, "probe")
        passed &= probe["positions"] > 0 and probe["sum_error"] <= SUM_ERROR
        passed &= probe["score_error"] <= SCORE_ERROR and run.get(stage, "val_loss") > 0
        reasons.append(
            f"{stage}: {probe['positions']} distributions sum to 1 within "
            f"{probe['sum_error']:.1e}, scores are theirs within {probe['score_error']:.1e} nats"
        )
    return Verdict(passed, "; ".join(reasons))


def score_first(run: Evidence) -> Verdict:
    """R8: a target is scored before an update learns from it."""
    ledger = run.get("eval_ttt", "ledger")
    updates = ledger["updates"]
    if updates == 0:
        return Verdict(None, "eval_ttt made no update")
    passed = bool(ledger["score_first"]) and updates == run.get("eval_ttt", "updates")
    return Verdict(passed, f"{updates:,} updates; scored before learnt from: {str(passed).lower()}")


def scored_once(run: Evidence) -> Verdict:
    """R9: each target is scored exactly once."""
    reasons, passed = [], True
    for stage in EVALUATORS:
        ledger, scored = run.get(stage, "ledger"), run.get(stage, "tokens_scored")
        passed &= bool(ledger["scored_once"]) and ledger["targets"] == scored
        reasons.append(f"{stage} scored {scored:,} targets, its ledger holds {ledger['targets']:,}")
    return Verdict(passed, "; ".join(reasons))


def whole_validation(run: Evidence) -> Verdict:
    """R10: the whole validation set is scored."""
    scored = {stage: run.get(stage, "tokens_scored") for stage in EVALUATORS}
    reason = ", ".join(f"{stage} {count:,}" for stage, count in scored.items())
    reason += f" of {run.targets:,} targets"
    if not run.limits.full_validation:
        return Verdict(None, f"{reason}; verify.full_validation is false")
    return Verdict(set(scored.values()) == {run.targets}, reason)


def byte_count(run: Evidence) -> Verdict:
    """R11: bits per byte divide by the bytes of the text, proven by the audit."""
    raw, counted = run.get("audit", "bytes_val_raw"), run.get("audit", "bytes_val_counted")
    lossless, normalization = run.get("audit", "lossless"), run.get("audit", "normalization")
    reasons = [f"text has {raw:,} bytes, tokens count {counted:,}, normalization: {normalization}"]
    # any other loss is the entrant's to choose, and could be chosen to make the text easier
    known = normalization in ("nmt_nfkc", "published") and run.limits.allow_normalisation
    passed = (lossless and raw == counted) or normalization == "space_sign" or known
    for stage in EVALUATORS:
        scored = run.get(stage, "bytes_scored")
        whole = run.get(stage, "tokens_scored") == run.targets
        passed &= _follows(run, stage) and (scored == counted if whole else scored <= counted)
        reasons.append(f"{stage} divides by {scored:,}")
    return Verdict(bool(passed), "; ".join(reasons))


def _follows(run: Evidence, stage: str) -> bool:
    """Tell whether val_bpb is what val_loss, tokens and bytes give."""
    nats = run.get(stage, "val_loss") * run.get(stage, "tokens_scored")
    bits = run.get(stage, "val_bpb") * run.get(stage, "bytes_scored")
    return math.isclose(nats, bits * math.log(2), rel_tol=1e-9)


def metrics_bound(run: Evidence) -> Verdict:
    """R15: the figures are of the files on disk, and the scores of their documents."""
    files = sum(len(run.read(stage)) for stage in ("audit", *EVALUATORS))
    reason = f"{files} files that audit and the evaluators read are those on disk"
    return Verdict(not run.unbound, "; ".join(run.unbound) or reason)


RULES: dict[str, tuple[str, Callable[[Evidence], Verdict]]] = {
    "R1": ("artifact fits its bytes", size),
    "R2": ("training fits its time", training_time),
    "R3": ("evaluation fits its time", evaluation_time),
    "R4": ("evaluators read package and tokens alone", evaluators_read),
    "R5": ("validation text is unseen", validation_unseen),
    "R6": ("scores are causal", causal),
    "R7": ("scores are normalized", normalized),
    "R8": ("scored before learnt from", score_first),
    "R9": ("each target scored once", scored_once),
    "R10": ("whole validation set", whole_validation),
    "R11": ("bytes are proven", byte_count),
    "R15": ("figures are of these files", metrics_bound),
}


def verify(limits: VerifyConfig, root: Path = Path()) -> bool:
    """Check every rule, write artifacts/metrics/verify.json, print the list; tell if all are kept.

    The file has passed, failed (how many), rules (the outcome by rule) and reasons, a list that
    `dvc metrics` leaves out of its table.
    """
    run = load_evidence(limits, root)
    verdicts = {rule: check(run) for rule, (_, check) in RULES.items()}
    broken = [rule for rule, verdict in verdicts.items() if verdict.passed is False]
    content = {
        "passed": not broken,
        "failed": len(broken),
        "rules": {rule: verdict.outcome for rule, verdict in verdicts.items()},
        "reasons": [
            {"rule": rule, "name": RULES[rule][0], "reason": verdict.reason}
            for rule, verdict in verdicts.items()
        ],
    }
    write_json(root / METRICS / "verify.json", content)
    for rule, verdict in verdicts.items():
        print(f"{rule:<4}{verdict.outcome:<15}{RULES[rule][0]}: {verdict.reason}")
    advice = f" ({FIX})" if limits.enforce else ""
    print(f"broken: {', '.join(broken)}{advice}" if broken else "no rule is broken")
    return not broken
