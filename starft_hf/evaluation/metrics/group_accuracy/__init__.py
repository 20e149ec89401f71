"""The folder of group accuracy, for `evaluate.load`."""
