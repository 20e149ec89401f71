"""Prefix sharing: the common beginnings of many texts are computed once.

In a causal text tower a token attends only to the tokens before it, so the states of "a photo of a dog" are the same
in "a photo of a dog." and in "a photo of a dog in the snow.". The token sequences of many texts are merged into prefix
trees, which are laid out in a few rows: each token attends to its ancestors, and its position is its depth. A text's
embedding is read at its last node: the same as if the text were encoded alone, for a fraction of the tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from starft_hf.models.families import family_of


# The keys of a packed batch that say where each text is pooled: the row and the position in it, `(M,)` each.
POOL_ROWS, POOL_PLACES = "text_rows", "text_places"


@dataclass
class _Row:
    """A row of prefix trees: for every node its token, its parent, which comes before it (-1: none), and its depth."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)


def pack(sequences: Sequence[list[int]], pooled: Sequence[int], max_length: int, padding: int) -> dict[str, Tensor]:
    """Lay token sequences, unpadded and not longer than `max_length`, out in rows that share their prefixes.

    `pooled` is the position in every sequence whose state is the text's embedding; `padding` is a token id.

    Returns:
        `input_ids` and `position_ids`, `(R, L)`; `attention_mask`, booleans `(R, 1, L, L)`; and for every sequence
        the row and the place its embedding is read from, `text_rows` and `text_places`, `(M,)`.
    """
    rows = [_Row()]
    where = torch.empty(2, len(sequences), dtype=torch.long)
    # In lexicographic order, the longest prefix that a row has already is the one shared with the text before.
    previous: list[int] = []
    nodes: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda index: sequences[index]):
        sequence, shared = sequences[index], 0
        while shared < min(len(previous), len(sequence)) and previous[shared] == sequence[shared]:
            shared += 1
        if len(rows[-1].tokens) + len(sequence) - shared > max_length:
            rows.append(_Row())
            shared = 0
        row, nodes, previous = rows[-1], nodes[:shared], sequence
        for token in sequence[shared:]:
            row.parents.append(nodes[-1] if nodes else -1)
            row.depths.append(len(nodes))
            nodes.append(len(row.tokens))
            row.tokens.append(token)
        where[:, index] = torch.tensor([len(rows) - 1, nodes[pooled[index]]])

    length = max(len(row.tokens) for row in rows)
    input_ids = torch.full((len(rows), length), padding)
    position_ids = torch.zeros(len(rows), length, dtype=torch.long)
    # Every node attends to itself; padding, too, because a softmax over nothing is NaN.
    attends = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
    for number, row in enumerate(rows):
        input_ids[number, : len(row.tokens)] = torch.tensor(row.tokens)
        position_ids[number, : len(row.tokens)] = torch.tensor(row.depths)
        # A node sees what its parent sees, which is complete by now, and itself.
        for node, parent in enumerate(row.parents):
            if parent >= 0:
                attends[number, node] |= attends[number, parent]
    return {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "attention_mask": attends[:, None],
        POOL_ROWS: where[0],
        POOL_PLACES: where[1],
    }


@contextmanager
def pooled_at(model: Any, batch: Mapping[str, Any]) -> Iterator[None]:
    """Within, the text tower of `model` pools at the positions of a packed `batch`; other batches change nothing."""
    if POOL_ROWS not in batch:
        yield
        return
    rows, places = batch[POOL_ROWS], batch[POOL_PLACES]

    def pool(module: nn.Module, args: Any, outputs: Any) -> Any:
        outputs.pooler_output = outputs.last_hidden_state[rows, places]
        return outputs

    hook = getattr(model, family_of(model).text_tower).register_forward_hook(pool)
    try:
        yield
    finally:
        hook.remove()
