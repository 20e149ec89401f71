"""What is computed before the first step of a run."""

from typing import TypeVar


T = TypeVar("T")


def prepared(part: T | None) -> T:
    """A part of a run that is computed before its first step; a RuntimeError that says how, if it was not yet."""
    if part is None:
        raise RuntimeError(
            "a loss needs what train() computes before its first step, such as embeddings of the reference; outside "
            "of it, call trainer.setup.prepare(trainer.args.device) before compute_loss()"
        )
    return part
