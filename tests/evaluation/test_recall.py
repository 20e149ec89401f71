"""Recall from embeddings is what its definition says, in blocks of any size, and ties count against the model."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from starft_hf.evaluation.recall import retrieval_hits


CUTOFFS = (1, 5, 10)


def naive(queries, candidates, pairs):
    """Hits by sorting all candidates of every query: of equal similarities the irrelevant ones come first."""
    hits = [0] * len(CUTOFFS)
    for query, row in enumerate((queries @ candidates.T).tolist()):
        relevant = {candidate for own, candidate in pairs if own == query}
        order = sorted(range(len(row)), key=lambda index: (-row[index], index in relevant))
        best = next(place for place, index in enumerate(order, start=1) if index in relevant)
        hits = [count + (best <= cutoff) for count, cutoff in zip(hits, CUTOFFS, strict=True)]
    return hits


def example(images=23, captions=57, width=6, seed=0):
    """Images with one caption to four each, some of which several images share, in float64."""
    rng = np.random.default_rng(seed)
    pairs = {(int(caption % images), int(caption)) for caption in range(captions)}
    pairs |= {(int(rng.integers(images)), int(caption)) for caption in rng.choice(captions, 9, replace=False)}
    vectors = F.normalize(torch.from_numpy(rng.normal(size=(images + captions, width))), dim=-1)
    return vectors[:images], vectors[images:], sorted(pairs, key=lambda pair: hash(pair))


@pytest.mark.parametrize("block", [None, 1, 4, 23])
def test_it_is_its_definition_both_ways_and_in_blocks(block):
    images, captions, pairs = example()
    index = torch.tensor(pairs)
    assert retrieval_hits(images, captions, index, CUTOFFS, block=block) == naive(images, captions, pairs)
    back = [(caption, image) for image, caption in pairs]
    found = retrieval_hits(captions, images, index.flip(1), CUTOFFS, block=block)
    assert found == naive(captions, images, back)
    assert 0 < found[0] < found[2] < len(captions)


@pytest.mark.parametrize("block", [None, 1])
def test_ties_count_against_the_model_whatever_their_order(block):
    images, captions, pairs = example()
    # Each of these is the same as another, which belongs to other images.
    copied = captions.clone()
    copied[:20] = captions[20:40]
    expected = naive(images, copied, pairs)
    assert retrieval_hits(images, copied, torch.tensor(pairs), CUTOFFS, block=block) == expected
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    moved = torch.tensor([(image, place[caption]) for image, caption in pairs])
    assert retrieval_hits(images, copied[order], moved, CUTOFFS, block=block) == expected
    # Among 20 equal captions, none is found.
    equal, one_each = captions[:1].expand(20, -1), torch.arange(20)[:, None].expand(-1, 2)
    assert retrieval_hits(images[:20], equal, one_each, CUTOFFS, block=block) == [0, 0, 0]
    # Those of one's own are no competition.
    own = torch.tensor([(0, caption) for caption in range(20)])
    assert retrieval_hits(images[:1], equal, own, CUTOFFS, block=block) == [1, 1, 1]


def test_nan_finds_nothing():
    images, captions, pairs = example()
    index = torch.tensor(pairs)
    assert retrieval_hits(images * torch.nan, captions, index, CUTOFFS) == [0, 0, 0]
    assert retrieval_hits(images, captions * torch.nan, index, CUTOFFS) == [0, 0, 0]
    # A single candidate is first, unless nothing is known of it.
    only = torch.tensor([(0, 0)])
    assert retrieval_hits(images[:1], captions[:1], only, CUTOFFS) == [1, 1, 1]
    assert retrieval_hits(images[:1], captions[:1] * torch.nan, only, CUTOFFS) == [0, 0, 0]


def test_similarities_are_not_rounded_by_autocast():
    images, captions, pairs = example(200, 400, 64)
    images, captions = images.float(), captions.float()
    index = torch.tensor(pairs)
    expected = retrieval_hits(images, captions, index, CUTOFFS)
    with torch.autocast("cpu", torch.bfloat16):
        assert retrieval_hits(images, captions, index, CUTOFFS) == expected
        assert (images @ captions.T).dtype == torch.bfloat16


def test_no_matrix_of_all_pairs_is_made(monkeypatch):
    """Blocks bound what is in memory: as few queries at a time as there are candidates for."""
    monkeypatch.setattr("starft_hf.evaluation.recall._MOST_SIMILARITIES", 100)
    images, captions, pairs = example()
    shapes, where = [], torch.where
    monkeypatch.setattr(torch, "where", lambda test, *rest: shapes.append(tuple(test.shape)) or where(test, *rest))
    assert retrieval_hits(images, captions, torch.tensor(pairs), CUTOFFS) == naive(images, captions, pairs)
    assert set(shapes) == {(1, 57)}
