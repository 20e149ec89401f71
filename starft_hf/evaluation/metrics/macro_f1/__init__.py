"""The folder that `evaluate.load` takes for macro F1."""
