"""The packages that an export needs, which are an extra."""

import importlib

from packaging.version import Version
from torch import __version__ as torch_version


_NEEDED = ("onnx", "onnxscript", "onnxruntime")
# Earlier exporters cannot export the towers of transformers 5.
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
