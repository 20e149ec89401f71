"""Prefix sharing: the common beginnings of many texts are computed once.

In a causal text tower a token attends only to the tokens before it, so the states of "a photo of a dog" are the same
in "a photo of a dog." and in "a photo of a dog in the snow.". The token sequences of many texts are merged into prefix
trees, which are laid out in a few rows: each token attends to its ancestors, and its position is its depth. A text's
embedding is read at its last node: the same as if the text were encoded alone, for a fraction of the tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from starft_hf.models.families import family_of


# The attention that takes a boolean mask per pair of tokens.
PACKED_ATTENTION = "sdpa"
# The keys of a packed batch that say where each text is pooled: the row and the position in it, `(M,)` each.
POOL_ROWS, POOL_PLACES = "text_rows", "text_places"


class _Row:
    """A row of prefix trees: nodes in the order they were added, so that a parent comes before its children."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def known_prefix(self, tokens: Sequence[int]) -> list[int]:
        """The nodes of the longest prefix of `tokens` that the row has already."""
        nodes: list[int] = []
        for token in tokens:
            node = self._children.get((nodes[-1] if nodes else -1, token))
            if node is None:
                break
            nodes.append(node)
        return nodes

    def add(self, tokens: Sequence[int], nodes: list[int]) -> list[int]:
        """Add the tokens after the known prefix `nodes`; returns the nodes of all `tokens`."""
        for token in tokens[len(nodes) :]:
            parent = nodes[-1] if nodes else -1
            node = self._children[parent, token] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(len(nodes))
            nodes.append(node)
        return nodes


def pack(sequences: Sequence[list[int]], pooled: Sequence[int], max_length: int, padding: int) -> dict[str, Tensor]:
    """Lay token sequences out in rows that share their prefixes.

    Args:
        sequences: the token ids of every text, without padding; none longer than `max_length`.
        pooled: the position in every sequence whose state is the text's embedding.
        max_length: positions of the text tower.
        padding: token id to fill rows with.

    Returns:
        `input_ids` and `position_ids`, `(R, L)`; `attention_mask`, booleans `(R, 1, L, L)`; and for every sequence
        the row and the place its embedding is read from, `text_rows` and `text_places`, `(M,)`.
    """
    rows = [_Row()]
    rows_of, places_of = ([0] * len(sequences) for _ in range(2))
    # Lexicographic order puts texts with a common prefix next to each other, so that the current row is the only one
    # in which to search for it.
    for index in sorted(range(len(sequences)), key=lambda index: sequences[index]):
        sequence = sequences[index]
        known = rows[-1].known_prefix(sequence)
        if len(rows[-1].tokens) + len(sequence) - len(known) > max_length:
            rows.append(_Row())
            known = []
        rows_of[index] = len(rows) - 1
        places_of[index] = rows[-1].add(sequence, known)[pooled[index]]

    length = max(len(row.tokens) for row in rows)
    input_ids, parents, position_ids = (
        torch.tensor([each + [filler] * (length - len(each)) for each in found], dtype=torch.long)
        for found, filler in (
            ([row.tokens for row in rows], padding),
            ([row.parents for row in rows], 0),
            ([row.depths for row in rows], 0),
        )
    )
    # Every node attends to itself; padding, too, because a softmax over nothing is NaN.
    attends = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
    for depth in range(1, 1 + max(max(row.depths, default=0) for row in rows)):
        # A node sees what its parent sees, which is complete by now, and itself.
        row, node = (position_ids == depth).nonzero(as_tuple=True)
        attends[row, node] |= attends[row, parents[row, node]]
    return {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "attention_mask": attends[:, None],
        POOL_ROWS: torch.tensor(rows_of),
        POOL_PLACES: torch.tensor(places_of),
    }


@contextmanager
def pooled_at(model: Any, batch: Mapping[str, Any]) -> Iterator[None]:
    """Within, the text tower of `model` pools at the positions of a packed `batch`; other batches change nothing."""
    if POOL_ROWS not in batch:
        yield
        return
    rows, places = batch[POOL_ROWS], batch[POOL_PLACES]
    tower = getattr(model, family_of(model).text_tower)
    if (attention := getattr(tower.config, "_attn_implementation", None)) != PACKED_ATTENTION:
        raise ValueError(
            f"the attention of the text tower has become {attention!r}, which adds masks of texts that share their "
            "prefixes rather than applying them; choose it before the trainer or the evaluation is made"
        )

    def pool(module: nn.Module, args: Any, outputs: Any) -> Any:
        outputs.pooler_output = outputs.last_hidden_state[rows, places]
        return outputs

    hook = tower.register_forward_hook(pool)
    try:
        yield
    finally:
        hook.remove()
