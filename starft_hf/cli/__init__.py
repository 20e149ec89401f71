"""The command line: `starft` and `python -m starft_hf`."""

from starft_hf.cli.main import main


__all__ = ["main"]
