"""Importing any test keeps the caches of the user out of the tests, and the tests out of them."""

import atexit
import os
import shutil
import tempfile


os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="starft-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
