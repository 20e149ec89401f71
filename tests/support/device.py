"""Where tests train: on the CPU, unless STARFT_TEST_GPU is set, as `make gpu` does for those that compare exactly."""

import os


USE_CPU = not os.environ.get("STARFT_TEST_GPU")
