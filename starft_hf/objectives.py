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
    logits = similarity_logits(image_embeds, text_embeds, logit_scale)
    targets = torch.arange(logits.shape[0], device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def alignment_loss(
    image_embeds: Tensor,
    spurious_embeds: Tensor,
    reference_image_embeds: Tensor,
    reference_spurious_embeds: Tensor,
    logit_scale: Tensor | float,
    labels: Tensor | None = None,
) -> Tensor:
    """KL divergence, in nats, from the reference's distribution over spurious captions to the tuned model's.

    `KL( softmax(s0 I0 S0') || softmax(s0 I S') )`, image to text, averaged over the rows. With `labels`, columns
    whose caption has the row's label (the row's own included) take no part, and a row that has no column left
    contributes 0: this is the "star" regularizer. Without, every column counts: "kl".

    Args:
        image_embeds: unit rows of the tuned model, `(N, D)`.
        spurious_embeds: unit rows of the tuned model, `(N, D)`; row i is the spurious caption of image i.
        reference_image_embeds: the same of the frozen reference, `(N, D0)`.
        reference_spurious_embeds: the same of the frozen reference, `(N, D0)`.
        logit_scale: s0, the *reference's* inverse temperature, already exponentiated; used on both sides.
        labels: class index of every row, `(N,)`, or None.

    Returns:
        A scalar. No gradient flows into the reference's embeddings.
    """
    with torch.no_grad():
        target = similarity_logits(reference_image_embeds, reference_spurious_embeds, logit_scale)
    logits = similarity_logits(image_embeds, spurious_embeds, logit_scale)
    # The wider of the two, so that a float32 cache does not narrow a float64 run.
    target = target.to(torch.promote_types(target.dtype, logits.dtype))
    if logits.shape != target.shape:
        raise ValueError(
            f"the tuned model gives logits of shape {tuple(logits.shape)} and the reference {tuple(target.shape)}; "
            "both need one row per image and one column per spurious caption"
        )
    if labels is None:
        return F.kl_div(logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean")

    excluded = labels[:, None] == labels[None, :]
    # The lowest finite number of the dtype: it vanishes under softmax in any precision, and unlike -inf it does not
    # turn a row without any column left into NaN. Only float32 and wider come here, so it cannot overflow.
    log_q = logits.masked_fill(excluded, torch.finfo(logits.dtype).min).log_softmax(-1)
    log_p = target.masked_fill(excluded, torch.finfo(target.dtype).min).log_softmax(-1)
    # Excluded columns have probability 0 except in rows that are excluded entirely: there softmax is uniform.
    terms = (log_p.exp() * (log_p - log_q)).masked_fill(excluded, 0)
    return terms.sum() / logits.shape[0]


def similarity_logits(rows: Tensor, columns: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Scaled inner products `(N, M)` of rows `(N, D)` and columns `(M, D)`, in float32 or wider, autocast or not."""
    with torch.autocast(device_type=rows.device.type, enabled=False):
        scale = as_float32_or_wider(logit_scale) if isinstance(logit_scale, Tensor) else logit_scale
        return scale * (as_float32_or_wider(rows) @ as_float32_or_wider(columns).T)


def as_float32_or_wider(tensor: Tensor) -> Tensor:
    """`tensor` in float32 if it is narrower, untouched otherwise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
