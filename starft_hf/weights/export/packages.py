"""The packages that an export needs, which are an extra."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator

from packaging.version import Version
from torch import __version__ as torch_version


_NEEDED = ("onnx", "onnxscript", "onnxruntime")
# Its exporter is the oldest that was tried.
_TORCH = "2.9"


def check_packages() -> None:
    """Raise ImportError, saying what to install, if a package is missing that an export needs, or torch is too old."""
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"an export needs {name}, which is not installed: pip install 'starft_hf[export]'", name=name
            ) from error
    if Version(Version(torch_version).base_version) < Version(_TORCH):
        raise ImportError(
            f"an export needs torch {_TORCH} or later, and this is {torch_version}: pip install -U torch"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, nothing is logged or warned of: exporters report on the code of other libraries."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
