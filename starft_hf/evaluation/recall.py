"""Recall of image-text retrieval from embeddings, counted in blocks of queries."""

from collections.abc import Sequence

import torch
from torch import Tensor

from starft_hf.objectives.losses import as_float32_or_wider
from starft_hf.utils.collectives import gather_values, rank, world_size


# Similarities that are in memory at a time, unless a single query has more candidates.
_MOST_SIMILARITIES = 2**24


@torch.no_grad()
def retrieval_hits(
    queries: Tensor,
    candidates: Tensor,
    relevant: Tensor,
    cutoffs: Sequence[int],
    *,
    block: int | None = None,
) -> list[int]:
    """How many queries have a relevant candidate among their best ones, for every cutoff.

    Ties count against the model: the rank of a query's best relevant candidate is 1 + the number of irrelevant ones
    that are not less similar. So the counts depend neither on the order of the candidates nor on the size of a block,
    and a model that has one embedding for everything, or NaN, finds nothing. In a process group, each process ranks a
    share of the queries, and all of them return the counts of the whole set.

    Args:
        queries: unit rows, `(N, D)`.
        candidates: unit rows, `(M, D)`.
        relevant: distinct pairs of the index of a query and that of a candidate that is relevant to it, `(P, 2)`.
        cutoffs: such as 1, 5 and 10: a query is a hit if the rank is at most the cutoff.
        block: queries that are compared at a time; None bounds the similarities in memory.
    """
    # Rows that are equal bit by bit are one candidate, because a product need not have the same last bit for both.
    # On the CPU, since not every device has this function.
    rows = torch.unique(as_float32_or_wider(candidates).cpu(), dim=0, return_inverse=True)
    distinct, place = (part.to(queries.device) for part in rows)
    copies = place.bincount(minlength=len(distinct))
    query, candidate = relevant[relevant[:, 0].argsort()].to(queries.device).unbind(1)
    query, place = query.contiguous(), place[candidate]
    limits = torch.tensor(cutoffs, device=queries.device)
    hits = torch.zeros_like(limits)
    share = -(-len(queries) // world_size())
    first, last = (min(len(queries), share * (rank() + more)) for more in (0, 1))
    block = block or max(1, _MOST_SIMILARITIES // max(1, len(distinct)))
    # Autocast would compute similarities in half precision.
    with torch.autocast(queries.device.type, enabled=False):
        for start in range(first, last, block):
            stop = min(last, start + block)
            similarities = as_float32_or_wider(queries[start:stop]) @ distinct.T
            own = slice(*torch.searchsorted(query, query.new_tensor([start, stop])).tolist())
            row = query[own] - start
            found = similarities[row, place[own]]
            best = similarities.new_full((stop - start,), -torch.inf)
            best.scatter_reduce_(0, row, found.nan_to_num(nan=-torch.inf), "amax")
            # Comparisons with NaN are false, so that it counts like a tie.
            above = torch.where(similarities < best[:, None], 0, copies).sum(1)
            above -= row[~(found < best[row])].bincount(minlength=stop - start)
            hits += ((above[:, None] < limits) & best.isfinite()[:, None]).sum(0)
    return [int(count) for count in gather_values(hits[None]).sum(0)]
