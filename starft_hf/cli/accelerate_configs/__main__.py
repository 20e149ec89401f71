"""`python -m starft_hf.cli.accelerate_configs NAME` prints the path of a configuration."""

import sys

from starft_hf.cli.accelerate_configs import config_file


try:
    print(config_file(*sys.argv[1:]))
except (TypeError, ValueError) as error:
    sys.exit(str(error))
