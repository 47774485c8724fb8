"""Hold the run against the rules: `python stages/verify.py`; exit code 1 where one is broken."""

from paramgolf.program import exit_on_fault, start_stage

start_stage()  # before torch and numpy are loaded

from paramgolf.mirror import mirrored
from paramgolf.params import load_params
from paramgolf.verify.config import VerifyConfig
from paramgolf.verify.rules import verify


def main() -> None:
    """Read the metrics, write artifacts/metrics/verify.json, and fail if the rules are enforced."""
    limits = load_params(VerifyConfig, "verify")
    with mirrored("verify"):
        kept = verify(limits)
    if not kept and limits.enforce:
        raise SystemExit(1)


if __name__ == "__main__":
    with exit_on_fault():
        main()
