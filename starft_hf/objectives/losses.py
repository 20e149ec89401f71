"""The losses of StarFT (arXiv 2505.13232): pure functions of tensors.

Every loss is computed in float32 or wider, whatever dtype the embeddings have and whether or not autocast is on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Symmetric image-text contrastive loss, in nats: the base loss of FLYP (arXiv 2212.00638).

    Args:
        image_embeds: unit rows, `(N, D)`.
        text_embeds: unit rows, `(N, D)`; row i is the caption of image i.
        logit_scale: inverse temperature, already exponentiated.

    Returns:
        A scalar, the mean of the image-to-text and the text-to-image cross-entropy.

    Raises:
        ValueError: if the two sets of embeddings differ in shape.
    """
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"image_embeds has shape {tuple(image_embeds.shape)} and text_embeds {tuple(text_embeds.shape)}; "
            "pass one caption per image"
        )
    return contrastive_rows(image_embeds, text_embeds, image_embeds, text_embeds, logit_scale).mean()


def contrastive_rows(
    image_embeds: Tensor,
    text_embeds: Tensor,
    image_candidates: Tensor,
    text_candidates: Tensor,
    logit_scale: Tensor | float,
    first: int = 0,
    valid: Tensor | None = None,
) -> Tensor:
    """The terms `(n,)` of the contrastive loss for n of the N rows of a batch, from `first` on.

    `valid` says which candidates count, `(N,)`; None: all.
    """
    targets = torch.arange(first, first + len(image_embeds), device=image_embeds.device)
    terms = []
    for rows, candidates in ((image_embeds, text_candidates), (text_embeds, image_candidates)):
        logits = similarity_logits(rows, candidates, logit_scale)
        if valid is not None:
            logits = logits.masked_fill(~valid, torch.finfo(logits.dtype).min)
        terms.append(F.cross_entropy(logits, targets, reduction="none"))
    return (terms[0] + terms[1]) / 2


def sigmoid_rows(
    image_embeds: Tensor,
    text_candidates: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    first: int = 0,
    valid: Tensor | None = None,
) -> Tensor:
    """The terms `(n,)` of the pairwise sigmoid loss of SigLIP (arXiv 2303.15343) for n of the N rows of a batch.

    Every image and caption are classified as a pair or not: `-log sigmoid(z (s I T' + b))`, with z = 1 for the row's
    own caption and -1 for others, summed over captions. The loss is the mean over all N rows. `first` and `valid` as
    in `contrastive_rows`.
    """
    logits = similarity_logits(image_embeds, text_candidates, logit_scale) + logit_bias
    places = torch.arange(logits.shape[1], device=logits.device)
    own = places == torch.arange(first, first + len(logits), device=logits.device)[:, None]
    terms = -F.logsigmoid(torch.where(own, logits, -logits))
    return (terms if valid is None else terms.masked_fill(~valid, 0)).sum(-1)


def multi_label_loss(
    image_embeds: Tensor,
    class_embeds: Tensor,
    targets: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
) -> Tensor:
    """Binary cross-entropy, in nats, of every image with every class, averaged over both.

    The logits are `s I T' + b`: whether an image shows a class is a question of its own for every class.

    Args:
        image_embeds: unit rows, `(N, D)`.
        class_embeds: unit rows of one caption per class, `(C, D)`.
        targets: 1 where an image has a class and 0 where it does not, `(N, C)`.
        logit_scale: s, already exponentiated.
        logit_bias: b.

    Returns:
        A scalar.
    """
    return multi_label_rows(image_embeds, class_embeds, targets, logit_scale, logit_bias).mean()


def multi_label_rows(
    image_embeds: Tensor,
    class_embeds: Tensor,
    targets: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The terms `(N,)` of `multi_label_loss`, with targets smoothed to `label_smoothing / 2` and 1 less that."""
    logits = similarity_logits(image_embeds, class_embeds, logit_scale) + logit_bias
    wanted = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)


def alignment_loss(
    image_embeds: Tensor,
    spurious_embeds: Tensor,
    reference_image_embeds: Tensor,
    reference_spurious_embeds: Tensor,
    logit_scale: Tensor | float,
    labels: Tensor | None = None,
) -> Tensor:
    """KL divergence, in nats, from the reference's distribution over spurious captions to the tuned model's.

    `KL( softmax(s0 I0 S0') || softmax(s0 I S') )`, image to text, averaged over the rows. With `labels`, captions of
    the row's own class (the row's own caption included) are excluded, and a row without any other caption contributes
    0: this is the "star" regularizer. Without `labels`, all captions count: "kl".

    Args:
        image_embeds: unit rows of the tuned model, `(N, D)`.
        spurious_embeds: unit rows of the tuned model, `(N, D)`; row i is the spurious caption of image i.
        reference_image_embeds: the same from the frozen reference, `(N, D0)`.
        reference_spurious_embeds: the same from the frozen reference, `(N, D0)`.
        logit_scale: s0, the *reference's* inverse temperature, already exponentiated; used on both sides.
        labels: class index of every row, `(N,)`, or None.

    Returns:
        A scalar. No gradient flows into the reference's embeddings.

    Raises:
        ValueError: if the reference and the tuned model have different numbers of images or captions.
    """
    # Without the row's own class, what is left is how the image spreads over captions of other classes. That is held
    # to the reference, while the probability of the true class, which training must raise, stays free.
    excluded = None if labels is None else labels[:, None] == labels[None, :]
    return alignment_rows(
        image_embeds, spurious_embeds, reference_image_embeds, reference_spurious_embeds, logit_scale, excluded
    ).mean()


def alignment_rows(
    image_embeds: Tensor,
    candidates: Tensor,
    reference_image_embeds: Tensor,
    reference_candidates: Tensor,
    logit_scale: Tensor | float,
    excluded: Tensor | None = None,
) -> Tensor:
    """The divergences `(n,)` of `alignment_loss` over M candidates, without those `excluded` per row, `(n, M)`."""
    with torch.no_grad():
        target = similarity_logits(reference_image_embeds, reference_candidates, logit_scale)
    logits = similarity_logits(image_embeds, candidates, logit_scale)
    # The wider of the two, so that a float32 cache does not narrow a float64 run.
    target = target.to(torch.promote_types(target.dtype, logits.dtype))
    if logits.shape != target.shape:
        raise ValueError(
            f"the tuned model gives logits of shape {tuple(logits.shape)} and the reference {tuple(target.shape)}; "
            "both need one row per image and one candidate per spurious caption"
        )
    if excluded is not None:
        # Masked on both sides before the softmax, so that both distributions are over the remaining candidates. The
        # lowest finite number of the dtype vanishes under softmax in any precision, and unlike -inf it does not turn a
        # row without any candidate left into NaN. Only float32 and wider get here, so it cannot overflow.
        logits = logits.masked_fill(excluded, torch.finfo(logits.dtype).min)
        target = target.masked_fill(excluded, torch.finfo(target.dtype).min)
    terms = F.kl_div(logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="none")
    # Excluded candidates have probability 0, except in rows that are excluded entirely: there softmax is uniform.
    return (terms if excluded is None else terms.masked_fill(excluded, 0)).sum(-1)


def similarity_logits(rows: Tensor, candidates: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Scaled inner products `(N, M)` of rows `(N, D)` and candidates `(M, D)`, in float32 or wider in any case."""
    with torch.autocast(device_type=rows.device.type, enabled=False):
        scale = as_float32_or_wider(logit_scale) if isinstance(logit_scale, Tensor) else logit_scale
        return scale * (as_float32_or_wider(rows) @ as_float32_or_wider(candidates).T)


def as_float32_or_wider(tensor: Tensor) -> Tensor:
    """`tensor` in float32 if it is narrower, untouched otherwise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unit_rows(embeds: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32 or wider."""
    return F.normalize(as_float32_or_wider(embeds), dim=-1)
