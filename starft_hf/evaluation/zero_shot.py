"""Zero-shot classifiers from class names and a prompt ensemble."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from starft_hf.data.captions import check_class_prompts, class_caption
from starft_hf.data.embedding import embedded_chunks
from starft_hf.models.encoder import DualEncoder, logit_scale_of
from starft_hf.models.heads import ClassificationHead, head_from_weights
from starft_hf.models.modes import evaluation_mode, unwrapped
from starft_hf.objectives.losses import unit_rows


def zero_shot_weights(
    model: nn.Module,
    encoder: DualEncoder,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    chunk_size: int = 256,
) -> Tensor:
    """The weight of a zero-shot classifier, `(classes, D)`: the logits of unit image rows are `rows @ weight.T`.

    The unit embeddings of a class under every template are averaged, normalized and scaled by the model's inverse
    temperature.

    Args:
        model: the dual encoder, possibly wrapped.
        encoder: its spec.
        class_names: names of the classes.
        templates: prompts with `{}` for the class name.
        chunk_size: texts per forward.

    Raises:
        ValueError: if the text tower cannot see a class name, or not tell two of them apart.
    """
    encode = encoder.encode_texts
    check_class_prompts(class_names, templates, encode)
    texts = [class_caption(name, template, encoding=encode) for name in class_names for template in templates]
    count = len(templates)
    rows: list[Tensor] = []
    pending: Tensor | None = None
    with evaluation_mode(model):
        for embeds in embedded_chunks(lambda chunk: encoder.encode(model, texts=chunk), texts, chunk_size):
            # One template needs no average, and its row is a unit row already.
            if count == 1:
                rows.append(embeds)
                continue
            # A class whose prompts are complete becomes one row: memory grows with the classes, not with the prompts.
            pending = embeds if pending is None else torch.cat([pending, embeds])
            done = len(pending) // count
            rows.append(unit_rows(pending[: done * count].unflatten(0, (done, count)).mean(1)))
            pending = pending[done * count :].clone()
        return logit_scale_of(unwrapped(model)) * torch.cat(rows)


def zero_shot_head(
    model: nn.Module, encoder: DualEncoder, class_names: Sequence[str], templates: Sequence[str]
) -> ClassificationHead:
    """The zero-shot classifier of these classes and prompts as a linear head, which cross-entropy runs start with."""
    head = head_from_weights(zero_shot_weights(model, encoder, class_names, templates))
    head.class_names, head.templates = tuple(class_names), tuple(templates)
    return head
