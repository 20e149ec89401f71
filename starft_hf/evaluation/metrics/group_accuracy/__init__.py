"""The folder that `evaluate.load` takes for group accuracy."""
