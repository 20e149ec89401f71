"""The folder that `evaluate.load` takes for the expected calibration error."""
