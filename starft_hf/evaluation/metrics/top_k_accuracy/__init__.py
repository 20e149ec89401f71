"""The folder that `evaluate.load` takes for top-k accuracy."""
