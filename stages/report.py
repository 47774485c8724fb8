"""Make the report of the whole run: `python stages/report.py`."""

from paramgolf.program import exit_on_fault, start_stage

start_stage()  # before torch and numpy are loaded

from paramgolf.mirror import mirrored
from paramgolf.report.page import write_report


def main() -> None:
    """Read the other stages' files, write artifacts/report."""
    with mirrored("report"):
        write_report()


if __name__ == "__main__":
    with exit_on_fault():
        main()
