"""Checkpoints that a run resumes from as if it had never ended."""
