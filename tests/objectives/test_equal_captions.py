"""Equal captions in a batch: the contrastive loss is the one that counts all of them as positives."""

import pytest
import torch
from torch.nn.functional import normalize

from starft_hf import contrastive_loss


# Images of every class: balanced, unbalanced, one caption for all, and all different.
BATCHES = [(8, 8), (1, 2, 3, 10), (16,), (1,) * 16]
SCALES = [1.0, 100.0]


def leaves(sizes, scale):
    """Images, a caption per class and the temperature, and the label of every image."""
    generator = torch.Generator().manual_seed(sum(sizes) + len(sizes))
    images, captions = (
        torch.randn(rows, 12, generator=generator, dtype=torch.float64, requires_grad=True)
        for rows in (sum(sizes), len(sizes))
    )
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    shuffled = torch.randperm(len(labels), generator=generator)
    return (images, captions, torch.tensor(scale, dtype=torch.float64, requires_grad=True)), labels[shuffled]


def soft_multi_positive(images, captions, scale, labels):
    """Both cross-entropies against all captions, or images, of the own class, which share the target evenly."""
    logits = scale * images @ captions.T
    same = (labels[:, None] == labels[None, :]).to(logits.dtype)
    target = same / same.sum(1, keepdim=True)
    both = (-(target * rows.log_softmax(1)).sum(1).mean() for rows in (logits, logits.T))
    return sum(both) / 2


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("sizes", BATCHES, ids=str)
def test_value_and_gradients_are_those_of_several_positives(sizes, scale):
    found = []
    for loss in (lambda *given: contrastive_loss(*given[:3]), soft_multi_positive):
        (images, captions, temperature), labels = leaves(sizes, scale)
        value = loss(normalize(images), normalize(captions)[labels], temperature, labels)
        value.backward()
        found.append([value.detach(), images.grad, captions.grad, temperature.grad])
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 8e-15 * max(1.0, other.abs().max())


def test_the_least_value_is_what_equal_captions_cannot_tell_apart():
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    embeds = torch.eye(3, dtype=torch.float64)[labels]
    least = labels.bincount()[labels].double().log().mean()
    assert contrastive_loss(embeds, embeds, 100.0).item() == pytest.approx(least.item(), abs=1e-12)
