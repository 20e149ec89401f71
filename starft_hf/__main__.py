"""`python -m starft_hf`."""

import sys

from starft_hf.cli import main


if __name__ == "__main__":
    sys.exit(main())
