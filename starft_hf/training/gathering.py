"""The embeddings of a batch over all processes: what the rows of this process are compared with.

Contrastive and alignment losses compare every row with the candidates of the whole batch. With K processes, each keeps
its own n rows and gathers the candidates of all, with gradients. Averaging gradients over the processes, as DDP and
FSDP do, then gives those of one process with the whole batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from starft_hf.models.encoder import DualOutput
from starft_hf.utils.collectives import gather_candidates, gather_values, rank, world_size


@dataclass(frozen=True)
class GatheredBatch:
    """The candidates of all processes.

    Attributes:
        images: unit rows, `(N, D)`.
        captions: unit rows, `(N, D)`, or None where the base loss has no captions.
        spurious: unit rows, `(N, D)`, or None where rows have no spurious captions.
        first: the place of this process's first row among them.
        valid: which candidates belong to a sample, `(N,)`; None: all.
    """

    images: Tensor
    captions: Tensor | None
    spurious: Tensor | None
    first: int
    valid: Tensor | None


def gather_batch(batch: Mapping[str, Any], outputs: DualOutput, *, spurious: bool) -> GatheredBatch:
    """The candidates of all processes, with gradients, by one collective. `spurious`: rows have a spurious caption."""
    parts = [outputs.image_embeds]
    captions = "caption_rows" in batch
    if captions:
        parts.append(outputs.text_embeds[batch["caption_rows"]])
    if spurious:
        parts.append(outputs.text_embeds[batch["spurious_rows"]])
    valid = batch.get("valid")
    if world_size() > 1:
        parts = list(gather_candidates(torch.cat(parts, dim=-1)).split([part.shape[-1] for part in parts], dim=-1))
        valid = gather_values(batch["valid"]) if valid is not None else None
    return GatheredBatch(
        images=parts[0],
        captions=parts[1] if captions else None,
        spurious=parts[-1] if spurious else None,
        first=rank() * len(outputs.image_embeds),
        valid=valid,
    )


def batch_mean(terms: Tensor, batch: Mapping[str, Any], gathered: GatheredBatch) -> Tensor:
    """This process's share of the mean of terms, one per row `(n,)`, over all rows that are samples.

    Its mean over processes, which gradients go through anyway, is the mean over the batch. A batch without a single
    sample gives 0.
    """
    if gathered.valid is None:
        return terms.mean()
    return torch.where(batch["valid"], terms, 0).sum() * world_size() / gathered.valid.sum().clamp(min=1)
