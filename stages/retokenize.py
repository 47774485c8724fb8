"""Make the tokenizer and the token shards: `python stages/retokenize.py`."""

from paramgolf.program import exit_on_fault, start_stage

start_stage()  # before torch and numpy are loaded

from paramgolf.data.config import TokenizerConfig
from paramgolf.data.retokenize import retokenize
from paramgolf.params import load_params
from paramgolf.runtime_config import RuntimeConfig


def main() -> None:
    """Read params.yaml, write data/tokens."""
    retokenize(
        load_params(TokenizerConfig, "tokenizer"), load_params(RuntimeConfig, "runtime").workers
    )


if __name__ == "__main__":
    with exit_on_fault():
        main()
