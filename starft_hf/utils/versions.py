"""Versions of packages."""

import importlib.metadata
from collections.abc import Iterable

import starft_hf


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The versions of some packages by name; this one need not be installed, as in a checkout on the path."""
    return {
        package: starft_hf.__version__ if package == "starft_hf" else importlib.metadata.version(package)
        for package in packages
    }
