"""Perturbation tests of somebody's scoring function: what the rules ask, measured from outside.

docs/audit-score.md describes the functions that a script must have. The script is a black box here:
its text is changed, and its scores are compared.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from paramgolf.errors import ParamGolfError
from paramgolf.progress import track
from paramgolf.scoring.text import Text

NEEDED = ("load", "score", "probabilities")
SUM_ERROR = 1e-4  # of a distribution
CANDIDATES = 3  # tokens that are put in a target's place
LEAST = 1e-300  # what a probability of 0 counts as; a score above its -ln is that of 0, too
PAST = 2  # tokens of context that came before, where a cache would have an entry


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """How thorough the tests are.

    `targets` are looked at one by one, and as many later tokens are changed; scores that differ by
    no more than `tolerance` nats are the same. `isolated` asks that documents do not share context.
    """

    targets: int
    tolerance: float
    seed: int
    isolated: bool


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """Whether a rule is kept (None: it could not be judged), and why."""

    rule: str
    name: str
    passed: bool | None
    reason: str


class ScorerScript:
    """A loaded SCORER.py; its answers as float64 arrays, a ParamGolfError where it fails."""

    def __init__(self, module: ModuleType, path: Path = Path("SCORER.py")) -> None:
        self._module, self._path = module, path
        with _explained(self._path):
            self._model = module.load()

    def score(self, tokens: np.ndarray) -> np.ndarray:
        """Return the nats that the script gives to the targets of `tokens` [N + 1]."""
        with _explained(self._path):
            return np.asarray(self._module.score(self._model, tokens.copy()), dtype=np.float64)

    def probabilities(self, tokens: np.ndarray, target: int) -> np.ndarray:
        """Return the distribution by which `target` is scored, [V]."""
        with _explained(self._path):
            given = self._module.probabilities(self._model, tokens.copy(), target)
            return np.asarray(given, dtype=np.float64)

    def optional(self, name: str, tokens: np.ndarray) -> np.ndarray | None:
        """Return what function `name` says of `tokens`, None where there is no such function."""
        function: Callable[..., Any] | None = getattr(self._module, name, None)
        with _explained(self._path):
            return None if function is None else np.asarray(function(self._model, tokens.copy()))


@contextlib.contextmanager
def _explained(script: Path) -> Iterator[None]:
    """Raise a ParamGolfError for whatever a script raises, at the script's own innermost line."""
    try:
        yield
    except ParamGolfError:
        raise
    except (Exception, SystemExit) as error:  # any code may run here
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if Path(f.filename).resolve() == script.resolve()]
        where = f"{script}:{lines[-1]}" if lines else script
        raise ParamGolfError("the script fails", where=where, found=repr(error)) from None


def load_script(path: Path) -> ScorerScript:
    """Import SCORER.py as Python runs a script; a missing file or function is a ParamGolfError."""
    if not path.is_file():
        fix = "name a script with load, score and probabilities (docs/audit-score.md)"
        raise ParamGolfError(f"there is no file {path}", fix=fix)
    spec = importlib.util.spec_from_file_location(f"scorer_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ParamGolfError("not a Python script", where=path, expected="a file SCORER.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # where a script finds its own modules
    with _explained(path):
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            place = f"{error.filename}:{error.lineno}"
            raise ParamGolfError("the script is not Python", where=place, found=error.msg) from None
    missing = [name for name in NEEDED if not callable(getattr(module, name, None))]
    if missing:
        raise ParamGolfError(
            f"the script lacks {', '.join(missing)}",
            where=path,
            expected=f"functions {', '.join(NEEDED)}",
            fix="docs/audit-score.md describes them, with an example",
        )
    return ScorerScript(module, path)


def audit_scores(
    script: ScorerScript,
    text: Text,
    vocab_size: int,
    settings: AuditSettings,
    *,
    show: bool = False,
) -> list[AuditFinding]:
    """Judge a script on `text`, rule by rule."""
    audit = ScoreAudit(script, text, vocab_size, settings)
    findings = [audit.coverage()]
    judged = findings[0].passed
    tests: list[tuple[str, str, Callable[[], tuple[bool | None, str]]]] = [
        ("C1", "causal", audit.causal),
        ("C2", "normalized", audit.normalized),
        ("C3", "scored before learned from", audit.score_first),
        ("C4", "one pass", audit.one_pass),
    ]
    if settings.isolated:
        tests.append(("documents", "isolated", audit.isolated))
    for rule, name, test in track(tests, "audit", total=len(tests), show=show):
        verdict = test() if judged else (None, "not judged: there is not one score for each target")
        findings.append(AuditFinding(rule, name, *verdict))
    return [*findings[1:], findings[0], audit.bytes_counted()]


class ScoreAudit:
    """The tests of one script on one text."""

    def __init__(
        self, script: ScorerScript, text: Text, vocab_size: int, settings: AuditSettings
    ) -> None:
        self._script, self._text, self._settings = script, text, settings
        self._tokens, self._bos = text.tokens.astype(np.int64), text.bos
        self._vocab_size = vocab_size
        self._random = np.random.default_rng(settings.seed)
        self._nats = script.score(self._tokens)
        self._rank = self._when_scored()
        self._targets = self._choose()
        self._given: list[np.ndarray] | None = None

    def _when_scored(self) -> np.ndarray:
        """Return when each target is scored, int64 [N], by the script's `order` if it has one."""
        every = np.arange(len(self._text))
        order = self._script.optional("order", self._tokens)
        if order is None:
            return every
        if order.shape != every.shape or not np.array_equal(np.sort(order), every):
            raise ParamGolfError(
                "the script's function order does not name each target once",
                expected=f"the numbers 0..{len(every) - 1} in the order of their scoring",
                found=f"an array of shape {order.shape}",
                fix="docs/audit-score.md describes it",
            )
        return np.argsort(order)

    def _moved(self, tokens: np.ndarray) -> np.ndarray:
        """Return by how many nats the script scores each target otherwise in other text, [N]."""
        moved: np.ndarray = np.abs(self._script.score(tokens) - self._nats)
        return moved

    def coverage(self) -> AuditFinding:
        """Judge if there is one finite score for each target, whatever the length."""
        lengths = sorted({1, 2, *self._random.integers(1, len(self._text), 4).tolist()})
        faults = [self._fault(self._nats, len(self._text))]
        faults += [self._fault(self._script.score(self._tokens[: n + 1]), n) for n in lengths]
        found = [fault for fault in faults if fault]
        reason = found[0] if found else f"{len(faults)} texts of 1..{len(self._text)} targets"
        return AuditFinding("coverage", "each target scored once", not found, reason)

    def _fault(self, nats: np.ndarray, count: int) -> str | None:
        if nats.shape != (count,):
            return f"{count} targets have scores of shape {nats.shape}"
        wrong = np.flatnonzero(~np.isfinite(nats) | (nats < -self._settings.tolerance))
        if len(wrong):
            return f"target {wrong[0]} of {count} has the score {nats[wrong[0]]}, not a -ln p"
        return None

    def causal(self) -> tuple[bool, str]:
        """Judge if scores stay when a later token, or all of them, are others (C1)."""
        worst = _Worst(self._settings.tolerance)
        for target in self._targets:
            # all that was scored before the change; the target itself may move, and later ones
            before = self._rank < self._rank[target]
            for tokens, what in (
                (self._with(target, self._other(target)), f"token {target + 1}"),
                (self._hide(target), f"all from token {target + 1} on"),
            ):
                moved = np.where(before, self._moved(tokens), 0.0)
                at = int(moved.argmax())
                worst.see(moved[at], f"target {at} moved by {moved[at]:.3g} nats with {what}")
        return worst.verdict(f"{2 * len(self._targets)} changes of later text")

    def normalized(self) -> tuple[bool, str]:
        """Judge if scores are -ln p of distributions made before the target is seen (C2)."""
        worst, sums = _Worst(self._settings.tolerance), _Worst(SUM_ERROR)
        for target, given in zip(self._targets, self._distributions(), strict=True):
            if given.shape != (self._vocab_size,) or not (given >= 0).all():
                return False, f"target {target}: not {self._vocab_size} probabilities"
            total = given.sum()
            sums.see(abs(total - 1), f"the probabilities of target {target} sum to {total:.6g}")
            others = self._random.choice(self._vocab_size, CANDIDATES - 1).tolist()
            # a cache that makes the very target likelier shows where another one stands there
            for token in {int(given.argmax()), *others}:
                nats = self._script.score(self._with(target, token))[target]
                expected = -np.log(max(given[token], LEAST))
                text = f"token {token} as target {target} scores {nats:.4g}, not {expected:.4g}"
                worst.see(abs(min(nats, -np.log(LEAST)) - expected), text)
        if not sums.kept:
            return sums.verdict("")
        return worst.verdict(f"{len(self._targets)} distributions, {CANDIDATES} tokens of each")

    def score_first(self) -> tuple[bool, str]:
        """Judge if a score is that of the distribution made without it and what follows (C3)."""
        worst = _Worst(self._settings.tolerance)
        for target, given in zip(self._targets, self._distributions(), strict=True):
            token = self._tokens[target + 1]
            if given.shape != (self._vocab_size,):
                return False, f"target {target}: not {self._vocab_size} probabilities"
            expected = -np.log(max(given[token], LEAST))
            nats = self._nats[target]
            text = f"target {target} scores {nats:.4g}; {expected:.4g} before it was seen"
            worst.see(abs(nats - expected), text)
        return worst.verdict(f"{len(self._targets)} targets as they were predicted unseen")

    def one_pass(self) -> tuple[bool, str]:
        """Judge if a second evaluation gives the same: nothing is kept from the first (C4)."""
        # counts or weights that outlive an evaluation would make the second one better
        again = self._moved(self._tokens)
        at = int(again.argmax())
        worst = _Worst(self._settings.tolerance)
        worst.see(again[at], f"target {at} scores {again[at]:.3g} nats otherwise the second time")
        return worst.verdict("a second evaluation gives the same scores")

    def isolated(self) -> tuple[bool | None, str]:
        """Judge if scores of a document stay when another document's tokens are others."""
        worst = _Worst(self._settings.tolerance)
        begins = 1 + np.flatnonzero(
            (self._tokens[1:] == self._bos) & (self._tokens[:-1] != self._bos)
        )
        if not len(begins):
            return None, "one document alone shows nothing: score more tokens"
        count = min(len(begins), self._settings.targets)
        for begin in self._random.choice(begins, count, replace=False).tolist():
            moved = self._moved(self._with(begin - 2, self._other(begin - 2)))
            moved[:begin] = 0
            at = int(moved.argmax())
            worst.see(moved[at], f"target {at} moved with token {begin - 1}, of another document")
        return worst.verdict("changes of the text just before a document")

    def bytes_counted(self) -> AuditFinding:
        """Judge if each target counts the bytes that the tokens' folder says."""
        name, expected = "bytes", self._text.byte_counts.astype(np.int64)
        counts = self._script.optional("byte_counts", self._tokens)
        if counts is None:
            return AuditFinding("bytes", name, None, "the script has no function byte_counts")
        if counts.shape != expected.shape:
            return AuditFinding(
                "bytes", name, False, f"{expected.shape} targets, {counts.shape} counts"
            )
        wrong = np.flatnonzero(counts != expected)
        if not len(wrong):
            return AuditFinding("bytes", name, True, f"{expected.sum():,} bytes, target by target")
        at = wrong[0]
        reason = f"target {at} (token {self._tokens[at + 1]}) counts {counts[at]} bytes"
        reason += f", not {expected[at]}; {len(wrong)} targets differ"
        return AuditFinding("bytes", name, False, reason)

    def _distributions(self) -> Sequence[np.ndarray]:
        """Return what the script gives for each target, the text hidden from there on."""
        if self._given is None:
            self._given = [
                self._script.probabilities(self._hide(target), target) for target in self._targets
            ]
        return self._given

    def _choose(self) -> list[int]:
        """Choose targets that are not BOS: half of them where the tokens before came before."""
        tokens = self._tokens
        inner = np.flatnonzero(tokens[1:] != self._bos)
        keys = np.zeros(len(tokens) - 1, dtype=np.int64)
        for distance in range(PAST):
            keys += np.roll(tokens[:-1], distance) * self._vocab_size**distance
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        repeated = inner[(first[group][inner] < inner) & (inner >= PAST)]
        half = min(self._settings.targets // 2, len(repeated))
        chosen = self._random.choice(repeated, half, replace=False).tolist() if half else []
        rest = np.setdiff1d(inner, chosen)
        count = min(self._settings.targets - half, len(rest))
        return sorted([*chosen, *self._random.choice(rest, count, replace=False).tolist()])

    def _other(self, target: int) -> int:
        """Return a token that is neither BOS nor the target's."""
        allowed = np.setdiff1d(np.arange(self._vocab_size), [self._bos, self._tokens[target + 1]])
        return int(self._random.choice(allowed))

    def _with(self, target: int, token: int) -> np.ndarray:
        tokens = self._tokens.copy()
        tokens[target + 1] = token
        return tokens

    def _hide(self, target: int) -> np.ndarray:
        """Return the text with other tokens from `target` on, in the order of scoring.

        Documents begin where they did.
        """
        tokens = self._tokens.copy()
        inner = tokens[1:]
        drawn = self._random.choice(np.delete(np.arange(self._vocab_size), self._bos), len(inner))
        hidden = (self._rank >= self._rank[target]) & (inner != self._bos)
        tokens[1:] = np.where(hidden, drawn, inner)
        return tokens


class _Worst:
    """The largest of some errors, which should not exceed a bound."""

    def __init__(self, bound: float) -> None:
        self._bound, self._error, self._text = bound, 0.0, ""

    def see(self, error: float, text: str) -> None:
        """Take notice of an error; one that is no number is the largest of all."""
        error = float("inf") if np.isnan(error) else float(error)
        if error > self._error:
            self._error, self._text = error, text

    @property
    def kept(self) -> bool:
        """Whether no error exceeded the bound."""
        return self._error <= self._bound

    def verdict(self, done: str) -> tuple[bool, str]:
        """Return whether the bound was kept, and what was done or what exceeded it."""
        return self.kept, f"{done}: at most {self._error:.1e}" if self.kept else self._text
