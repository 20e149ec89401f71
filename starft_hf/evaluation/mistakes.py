"""The wrong predictions a model is surest of."""

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from starft_hf.evaluation.results import Mistake
from starft_hf.utils.collectives import world_size


class ConfidentMistakes:
    """Keeps, batch by batch, the most confident mistakes of every group.

    Args:
        limit: how many are kept per group.
        class_names: names of the classes.
    """

    def __init__(self, limit: int, class_names: Sequence[str]):
        self.limit = limit
        self.class_names = class_names
        self._by_group: dict[str, list[tuple[float, int, Mistake]]] = {}

    def update(self, logits: Tensor, batch: Mapping[str, Any]) -> None:
        """Look at the logits `(N, classes)` of an evaluation batch."""
        confidences, predicted = logits.double().softmax(-1).max(-1)
        # NaN can be neither more nor less confident than another.
        wrong = (predicted != batch["labels"]) & ~confidences.isnan()
        if "valid" in batch:
            wrong &= batch["valid"]
        for row in wrong.nonzero().flatten().tolist():
            mistake = Mistake(
                sample=int(batch["sample_index"][row]),
                label=self.class_names[int(batch["labels"][row])],
                predicted=self.class_names[int(predicted[row])],
                confidence=float(confidences[row]),
                group=batch["groups"][row],
            )
            self._keep(mistake)

    def _keep(self, mistake: Mistake) -> None:
        kept = self._by_group.setdefault(mistake.group, [])
        # Of two equally confident ones the earlier sample stays, so that batches and processes do not matter.
        heapq.heappush(kept, (mistake.confidence, -mistake.sample, mistake))
        if len(kept) > self.limit:
            heapq.heappop(kept)

    def of(self, group: str) -> tuple[Mistake, ...]:
        """The mistakes of a group, the most confident first."""
        return tuple(mistake for *_, mistake in sorted(self._by_group.get(group, []), reverse=True))

    def gathered(self) -> "ConfidentMistakes":
        """The mistakes of all processes together."""
        if world_size() == 1:
            return self
        everyone: list[Any] = [None] * world_size()
        dist.all_gather_object(everyone, self._by_group)
        total = ConfidentMistakes(self.limit, self.class_names)
        for by_group in everyone:
            for kept in by_group.values():
                for *_, mistake in kept:
                    total._keep(mistake)
        return total
