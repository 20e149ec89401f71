"""The most confident mistakes of a classifier."""

from bisect import insort
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch.distributed as dist
from torch import Tensor

from starft_hf.evaluation.results import Mistake
from starft_hf.utils.collectives import world_size


class ConfidentMistakes:
    """Keeps, batch by batch, the `limit` most confident mistakes of every group."""

    def __init__(self, limit: int, class_names: Sequence[str]):
        self.limit = limit
        self.class_names = class_names
        self._by_group: dict[str, list[Mistake]] = {}

    def update(self, logits: Tensor, batch: Mapping[str, Any]) -> None:
        """Add those of an evaluation batch with logits `(N, classes)`."""
        confidences, predicted = logits.double().softmax(-1).max(-1)
        # NaN cannot be ranked by confidence.
        wrong = (predicted != batch["labels"]) & ~confidences.isnan()
        if "valid" in batch:
            wrong &= batch["valid"]
        for row in wrong.nonzero().flatten().tolist():
            label, guess = (self.class_names[int(classes[row])] for classes in (batch["labels"], predicted))
            sample, confidence = int(batch["sample_index"][row]), float(confidences[row])
            self._keep(Mistake(sample, label, guess, confidence, batch["groups"][row]))

    def _keep(self, mistake: Mistake) -> None:
        kept = self._by_group.setdefault(mistake.group, [])
        # Of two equally confident ones the earlier sample is kept, whatever the batches and processes.
        insort(kept, mistake, key=lambda other: (-other.confidence, other.sample))
        del kept[self.limit :]

    def of(self, group: str) -> tuple[Mistake, ...]:
        """The mistakes of a group, the most confident first."""
        return tuple(self._by_group.get(group, ()))

    def gathered(self) -> "ConfidentMistakes":
        """The mistakes of all processes."""
        if world_size() == 1:
            return self
        everyone: list[Any] = [None] * world_size()
        dist.all_gather_object(everyone, self._by_group)
        total = ConfidentMistakes(self.limit, self.class_names)
        for mistake in chain.from_iterable(kept for by_group in everyone for kept in by_group.values()):
            total._keep(mistake)
        return total
