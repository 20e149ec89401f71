"""Audit: what a fine-tuned model has forgotten, what it leans on, and shortcuts that nobody named."""

from starft_hf.weights.audit.auditing import audit


__all__ = ["audit"]
