"""Pools of spurious templates: what StarFT keeps a model from learning, found in the data or written for the task."""

from typing import Any

from starft_hf.spuriosity.pool import SpuriosityPool


_LAZY = {
    "ChatEndpoint": "starft_hf.spuriosity.backends",
    "LocalChatModel": "starft_hf.spuriosity.backends",
    "discover_spuriosity": "starft_hf.spuriosity.discovery",
    "generate_pool": "starft_hf.spuriosity.generation",
}

__all__ = ["ChatEndpoint", "LocalChatModel", "SpuriosityPool", "discover_spuriosity", "generate_pool"]


def __getattr__(name: str) -> Any:
    # The modules of these import what imports this one.
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
