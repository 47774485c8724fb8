"""Count every validation byte twice; prove the splits disjoint: `python stages/audit.py`."""

from paramgolf.program import exit_on_fault, start_stage

start_stage()  # before torch and numpy are loaded

from paramgolf.data.audit import audit
from paramgolf.data.config import AuditConfig
from paramgolf.files import write_json
from paramgolf.mirror import mirrored
from paramgolf.params import load_params


def main() -> None:
    """Read params.yaml, write artifacts/metrics/audit.json."""
    config = load_params(AuditConfig, "audit")
    with mirrored("audit"):
        write_json("artifacts/metrics/audit.json", audit(config))


if __name__ == "__main__":
    with exit_on_fault():
        main()
