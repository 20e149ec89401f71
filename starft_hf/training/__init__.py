"""The trainer and what it wires together: configuration, setup, step, callbacks, checkpoints, comparison."""
