"""Classifying images, labeled or not, into a table of predictions."""

from starft_hf.hub.prediction.predicting import predict


__all__ = ["predict"]
