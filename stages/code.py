"""Hash the code of every stage without its comments: `python stages/code.py`."""

from paramgolf.program import exit_on_fault, start_stage

start_stage()  # before torch and numpy are loaded

from paramgolf.stage_code import write_hashes


def main() -> None:
    """Read paramgolf/ and stages/, write artifacts/code."""
    write_hashes()


if __name__ == "__main__":
    with exit_on_fault():
        main()
