"""The folder of top-k accuracy, for `evaluate.load`."""
