"""The folder of the expected calibration error, for `evaluate.load`."""
