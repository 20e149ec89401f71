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
    image_columns: Tensor,
    text_columns: Tensor,
    logit_scale: Tensor | float,
    first: int = 0,
    valid: Tensor | None = None,
) -> Tensor:
    """The terms `(n,)` of the contrastive loss that belong to n of the N rows of a batch.

    Args:
        image_embeds: unit rows, `(n, D)`.
        text_embeds: unit rows, `(n, D)`.
        image_columns: all images of the batch, `(N, D)`.
        text_columns: all captions of the batch, `(N, D)`.
        logit_scale: inverse temperature, already exponentiated.
        first: the place of the first row among the columns.
        valid: which columns count, `(N,)`; None: all.
    """
    targets = torch.arange(first, first + len(image_embeds), device=image_embeds.device)
    terms = []
    for rows, columns in ((image_embeds, text_columns), (text_embeds, image_columns)):
        logits = similarity_logits(rows, columns, logit_scale)
        if valid is not None:
            logits = logits.masked_fill(~valid, torch.finfo(logits.dtype).min)
        terms.append(F.cross_entropy(logits, targets, reduction="none"))
    return (terms[0] + terms[1]) / 2


def sigmoid_rows(
    image_embeds: Tensor,
    text_columns: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    first: int = 0,
    valid: Tensor | None = None,
) -> Tensor:
    """The terms `(n,)` of the pairwise sigmoid loss of SigLIP (arXiv 2303.15343) of n of the N rows of a batch.

    Every image is asked of every caption whether they are a pair: `-log sigmoid(z (s I T' + b))`, with z = 1 for the
    row's own caption and -1 for others, summed over captions. The loss is the mean over all N rows.

    Args:
        image_embeds: unit rows, `(n, D)`.
        text_columns: all captions of the batch, `(N, D)`.
        logit_scale: s, already exponentiated.
        logit_bias: b.
        first: the place of the first row among the columns.
        valid: which columns count, `(N,)`; None: all.
    """
    logits = similarity_logits(image_embeds, text_columns, logit_scale) + logit_bias
    places = torch.arange(logits.shape[1], device=logits.device)
    own = places == torch.arange(first, first + len(logits), device=logits.device)[:, None]
    terms = -F.logsigmoid(torch.where(own, logits, -logits))
    return (terms if valid is None else terms.masked_fill(~valid, 0)).sum(-1)


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

    Raises:
        ValueError: if the reference and the tuned model have different numbers of rows or columns.
    """
    excluded = None if labels is None else labels[:, None] == labels[None, :]
    return alignment_rows(
        image_embeds, spurious_embeds, reference_image_embeds, reference_spurious_embeds, logit_scale, excluded
    ).mean()


def alignment_rows(
    image_embeds: Tensor,
    columns: Tensor,
    reference_image_embeds: Tensor,
    reference_columns: Tensor,
    logit_scale: Tensor | float,
    excluded: Tensor | None = None,
) -> Tensor:
    """The divergences `(n,)` of `alignment_loss`, row by row, over M columns.

    Args:
        image_embeds: unit rows of the tuned model, `(n, D)`.
        columns: unit rows of the tuned model, `(M, D)`.
        reference_image_embeds: the same of the frozen reference, `(n, D0)`.
        reference_columns: the same of the frozen reference, `(M, D0)`.
        logit_scale: s0, already exponentiated.
        excluded: which columns take no part in which row, `(n, M)`; None: all take part.

    Raises:
        ValueError: if the reference and the tuned model have different numbers of rows or columns.
    """
    with torch.no_grad():
        target = similarity_logits(reference_image_embeds, reference_columns, logit_scale)
    logits = similarity_logits(image_embeds, columns, logit_scale)
    # The wider of the two, so that a float32 cache does not narrow a float64 run.
    target = target.to(torch.promote_types(target.dtype, logits.dtype))
    if logits.shape != target.shape:
        raise ValueError(
            f"the tuned model gives logits of shape {tuple(logits.shape)} and the reference {tuple(target.shape)}; "
            "both need one row per image and one column per spurious caption"
        )
    if excluded is not None:
        # The lowest finite number of the dtype: it vanishes under softmax in any precision, and unlike -inf it does
        # not turn a row without any column left into NaN. Only float32 and wider come here, so it cannot overflow.
        logits = logits.masked_fill(excluded, torch.finfo(logits.dtype).min)
        target = target.masked_fill(excluded, torch.finfo(target.dtype).min)
    terms = F.kl_div(logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="none")
    # Excluded columns have probability 0 except in rows that are excluded entirely: there softmax is uniform.
    return (terms if excluded is None else terms.masked_fill(excluded, 0)).sum(-1)


def similarity_logits(rows: Tensor, columns: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Scaled inner products `(N, M)` of rows `(N, D)` and columns `(M, D)`, in float32 or wider, autocast or not."""
    with torch.autocast(device_type=rows.device.type, enabled=False):
        scale = as_float32_or_wider(logit_scale) if isinstance(logit_scale, Tensor) else logit_scale
        return scale * (as_float32_or_wider(rows) @ as_float32_or_wider(columns).T)


def as_float32_or_wider(tensor: Tensor) -> Tensor:
    """`tensor` in float32 if it is narrower, untouched otherwise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
