import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from starft_hf import alignment_loss, contrastive_loss
from starft_hf.objectives.losses import alignment_rows, contrastive_rows, sigmoid_rows, similarity_logits


def unit(rows, dim, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return (embeds / embeds.norm(dim=-1, keepdim=True)).to(dtype)


@st.composite
def batches(draw, dtypes=(torch.float64,)):
    """Four sets of unit rows, labels and a logit scale."""
    rows, dim = draw(st.integers(1, 12)), draw(st.integers(1, 16))
    seed, dtype = draw(st.integers(0, 10**6)), draw(st.sampled_from(dtypes))
    embeds = [unit(rows, dim, seed + offset, dtype) for offset in range(4)]
    labels = torch.tensor(draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows)))
    return embeds, labels, draw(st.sampled_from([1.0, 14.3, 100.0]))


def reference_star(image, spurious, reference_image, reference_spurious, scale, labels):
    """The definition, row by row, with excluded columns left out rather than masked."""
    total = 0.0
    for row, label in enumerate(labels):
        columns = labels != label
        if columns.any():
            p = (scale * reference_image[row] @ reference_spurious[columns].T).softmax(-1)
            q = (scale * image[row] @ spurious[columns].T).softmax(-1)
            total += (p * (p / q).log()).sum()
    return total / len(labels)


@given(batches())
@settings(deadline=None)
def test_star_is_its_definition_row_by_row(batch):
    embeds, labels, scale = batch
    expected = reference_star(*embeds, scale, labels)
    assert float(alignment_loss(*embeds, scale, labels=labels)) == pytest.approx(float(expected), abs=1e-9)


@given(batches())
@settings(deadline=None)
def test_kl_is_its_definition(batch):
    embeds, _, scale = batch
    p = (scale * embeds[2] @ embeds[3].T).softmax(-1)
    q = (scale * embeds[0] @ embeds[1].T).softmax(-1)
    expected = (p * (p / q).log()).sum() / len(p)
    assert float(alignment_loss(*embeds, scale)) == pytest.approx(float(expected), abs=1e-9)


@given(batches(), st.booleans())
@settings(deadline=None)
def test_alignment_is_not_negative_and_zero_at_the_reference(batch, with_labels):
    (image, spurious, reference_image, reference_spurious), labels, scale = batch
    labels = labels if with_labels else None
    assert alignment_loss(image, spurious, reference_image, reference_spurious, scale, labels) >= -1e-12
    assert alignment_loss(image, spurious, image, spurious, scale, labels).abs() <= 1e-12


@given(batches(), st.randoms(use_true_random=False), st.booleans())
@settings(deadline=None)
def test_the_order_of_rows_does_not_matter(batch, random, with_labels):
    embeds, labels, scale = batch
    labels = labels if with_labels else None
    order = list(range(len(embeds[0])))
    random.shuffle(order)
    shuffled = [rows[order] for rows in embeds]
    torch.testing.assert_close(
        alignment_loss(*shuffled, scale, labels if labels is None else labels[order]),
        alignment_loss(*embeds, scale, labels),
    )
    torch.testing.assert_close(
        contrastive_loss(shuffled[0], shuffled[1], scale), contrastive_loss(embeds[0], embeds[1], scale)
    )


NARROW = (torch.float16, torch.bfloat16, torch.float32)


@st.composite
def hard_batches(draw):
    """Batches as `batches` has them, with what is hard in few bits: equal and opposite rows, one class, one row."""
    embeds, labels, _ = draw(batches(dtypes=NARROW))
    which = draw(st.sampled_from(["as they are", "all equal", "opposite", "texts are the images"]))
    if which == "all equal":
        embeds = [rows[:1].expand(len(rows), -1).clone() for rows in embeds]
    elif which == "opposite":
        embeds[1] = -embeds[0].clone()
    elif which == "texts are the images":
        embeds[1] = embeds[0].clone()
    labels = draw(st.sampled_from([labels, torch.zeros_like(labels), torch.arange(len(labels)), None]))
    return embeds, labels, draw(st.sampled_from([1.0, 14.3, 100.0, 1000.0]))


@given(hard_batches(), st.booleans())
@settings(deadline=None, max_examples=200)
def test_losses_and_gradients_are_finite_in_low_precision(batch, autocast):
    (image, text, *reference), labels, scale = batch
    image, text = image.requires_grad_(), text.requires_grad_()
    scale = torch.tensor(scale, requires_grad=True)
    places = torch.arange(len(image)) if labels is None else labels
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        losses = [
            alignment_loss(image, text, *reference, scale, labels),
            contrastive_loss(image, text, scale),
            sigmoid_rows(image, text, scale, torch.tensor(-10.0)).mean(),
            torch.nn.functional.cross_entropy(similarity_logits(image, text, scale), places.clamp(max=len(text) - 1)),
        ]
    for loss in losses:
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
    sum(losses).backward()
    for leaf in (image, text, scale):
        assert torch.isfinite(leaf.grad).all()


@given(hard_batches())
@settings(deadline=None)
def test_alignment_in_low_precision_is_not_negative_and_zero_at_the_reference(batch):
    (image, spurious, reference_image, reference_spurious), labels, scale = batch
    # What float32 leaves of logits of this size.
    rounding = 1e-6 * scale * len(image)
    assert alignment_loss(image, spurious, reference_image, reference_spurious, scale, labels) >= -rounding
    assert alignment_loss(image, spurious, image, spurious, scale, labels).abs() <= rounding


@given(hard_batches())
@settings(deadline=None)
def test_alignment_has_no_gradient_at_the_reference(batch):
    (image, spurious, *_), labels, scale = batch
    tuned = image.double().requires_grad_(), spurious.double().requires_grad_()
    alignment_loss(*tuned, image.double(), spurious.double(), scale, labels).backward()
    for rows in tuned:
        assert rows.grad.abs().max() <= 1e-12 * scale


@given(hard_batches(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_rows_does_not_matter_in_low_precision(batch, random):
    embeds, labels, scale = batch
    order = list(range(len(embeds[0])))
    random.shuffle(order)
    shuffled = [rows[order] for rows in embeds]
    tolerance = {"rtol": 1e-4, "atol": 1e-6 * scale * len(order)}
    torch.testing.assert_close(
        alignment_loss(*shuffled, scale, None if labels is None else labels[order]),
        alignment_loss(*embeds, scale, labels),
        **tolerance,
    )
    torch.testing.assert_close(
        contrastive_loss(shuffled[0], shuffled[1], scale), contrastive_loss(embeds[0], embeds[1], scale), **tolerance
    )


def test_autocast_does_not_narrow_the_losses():
    embeds = [unit(6, 8, seed, torch.float32) for seed in range(4)]
    labels = torch.arange(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = alignment_loss(*embeds, 100.0, labels), contrastive_loss(embeds[0], embeds[1], 100.0)
    wide = alignment_loss(*embeds, 100.0, labels), contrastive_loss(embeds[0], embeds[1], 100.0)
    assert torch.equal(narrow[0], wide[0])
    assert torch.equal(narrow[1], wide[1])


def test_a_batch_of_one_class_gives_zero_and_no_nan():
    image, spurious, *reference = (unit(5, 8, seed) for seed in range(4))
    image.requires_grad_()
    loss = alignment_loss(image, spurious, *reference, 20.0, labels=torch.zeros(5, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert torch.equal(image.grad, torch.zeros_like(image))


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 8\).*\(5, 8\)"):
        contrastive_loss(unit(4, 8, 0), unit(5, 8, 1), 10.0)
    with pytest.raises(ValueError, match="one row per image"):
        alignment_loss(unit(4, 8, 0), unit(4, 8, 1), unit(3, 8, 2), unit(3, 8, 3), 10.0)


def test_the_sigmoid_loss_is_its_definition():
    image, text = unit(5, 8, 0), unit(5, 8, 1)
    scale, bias = 7.0, -2.5
    terms = []
    for row in range(5):
        for column in range(5):
            z = 1 if row == column else -1
            terms.append(-math.log(1 / (1 + math.exp(-z * (scale * float(image[row] @ text[column]) + bias)))))
    assert sigmoid_rows(image, text, scale, bias).mean().item() == pytest.approx(sum(terms) / 5, abs=1e-12)


@pytest.mark.parametrize("shares", [(3, 3), (4, 2), (1, 5)])
def test_shares_of_the_rows_give_the_loss_of_the_whole_batch(shares):
    """What several processes compute: their own rows, some of them filling, against everyone's columns."""
    image, text, reference_image, reference_text = (unit(6, 8, seed) for seed in range(4))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    width = max(shares)
    valid = torch.cat([torch.arange(width) < share for share in shares])
    # Filling rows repeat the first row.
    padded = [torch.zeros(2 * width, 8).double() for _ in range(4)]
    padded_labels = torch.zeros(2 * width, dtype=torch.long)
    for into, source in zip(padded, (image, text, reference_image, reference_text), strict=True):
        into[:] = source[0]
        into[valid] = source
    padded_labels[valid] = labels
    image_columns, text_columns, reference_columns, reference_text_columns = padded
    losses = {"contrastive": 0.0, "sigmoid": 0.0, "star": 0.0}
    for number in range(2):
        rows = slice(number * width, (number + 1) * width)
        own, first = valid[rows], number * width
        terms = {
            "contrastive": contrastive_rows(
                image_columns[rows], text_columns[rows], image_columns, text_columns, 9.0, first, valid
            ),
            "sigmoid": sigmoid_rows(image_columns[rows], text_columns, 9.0, -1.0, first, valid),
            "star": alignment_rows(
                image_columns[rows],
                text_columns,
                reference_columns[rows],
                reference_text_columns,
                9.0,
                (padded_labels[rows, None] == padded_labels) | ~valid,
            ),
        }
        for name, values in terms.items():
            losses[name] += values[own].sum().item() / 6
    assert losses["contrastive"] == pytest.approx(contrastive_loss(image, text, 9.0).item(), abs=1e-12)
    assert losses["sigmoid"] == pytest.approx(sigmoid_rows(image, text, 9.0, -1.0).mean().item(), abs=1e-12)
    whole = alignment_loss(image, text, reference_image, reference_text, 9.0, labels)
    assert losses["star"] == pytest.approx(whole.item(), abs=1e-12)
