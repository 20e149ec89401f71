"""The folder of macro F1, for `evaluate.load`."""
