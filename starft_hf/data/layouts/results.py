"""Folders that this package, `Trainer` and trackers write, which lie beside data and are not data."""

from collections.abc import Collection
from fnmatch import filter as matching


# Folders of figures in what is written; other images lie directly in it.
FIGURES = ("figures", "examples")

MODELS = ("a trained model", "a checkpoint", "an adapter", "a model")
# What each is, and patterns of files that all of them have. A user's own folder may have any of the names alone.
_WRITTEN = (
    (MODELS[0], ("starft.json",)),
    (MODELS[1], ("trainer_state.json",)),
    (MODELS[2], ("adapter_config.json", "adapter_model.*")),
    (MODELS[3], ("config.json", "model*.safetensors")),
    (MODELS[3], ("config.json", "pytorch_model*.bin")),
    ("an exported model", ("labels.json", "preprocessing.json", "*.onnx")),
    ("what tune has written", ("tuning.json", "tuning.md")),
    ("an audit", ("audit.json", "audit.html")),
    ("what discover has written", ("discovery.md", "heat_map.png")),
    ("a Space", ("space.json", "app.py")),
    ("a report", ("report.json", "report.md")),
    ("a log of Weights & Biases", ("run-*.wandb",)),
)


def result_in(names: Collection[str]) -> tuple[str, str] | None:
    """What a folder with files of these names is, and those that say so, in words; None if it may be data."""
    for what, patterns in _WRITTEN:
        found = [matching(names, pattern)[:1] for pattern in patterns]
        if all(found):
            return what, " and ".join(name for (name,) in found)
    return None
