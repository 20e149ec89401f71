"""From examples to the tensors of a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from starft_hf.data.decoding import BAD_IMAGES
from starft_hf.data.images import stack_features
from starft_hf.models.texts import TextEncoding


@dataclass
class StarFTCollator:
    """Stacks images and encodes every distinct text of the batch once.

    A batch holds the arguments of the model's forward and, where the examples have them:
        labels: class indices, `(N,)`.
        groups: names of the evaluation groups, a list of N strings.
        valid: whether a row is a sample rather than filling, `(N,)`, with several processes or on_bad_image="skip".
        bad_images: for every row that is left out because of its image, the reason.
        sample_index: `(N,)`, under which the reference's image features are remembered.
        caption_rows, spurious_rows: `(N,)`, the rows of the batch's texts that hold the (spurious) caption of a row.
        spurious_ids: `(N,)`, the ids of the spurious captions in the caption bank.
        captions: a list of N strings in place of `caption_rows`, where a regularizer compares classes: its texts
            belong to the whole batch, are only known in the step, and are encoded together with these.

    Args:
        encode_texts: turns texts into arguments of the model's forward.
        with_captions: whether a loss needs the captions of the rows.
        with_spurious_captions: whether a loss needs their spurious captions.
        encode_captions: whether to encode the captions here; False leaves that to the step.
    """

    encode_texts: TextEncoding
    with_captions: bool = True
    with_spurious_captions: bool = True
    encode_captions: bool = True

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = stack_examples(examples)
        texts = {
            key: [example[name] for example in examples]
            for name, key, wanted in (
                ("caption", "caption_rows", self.with_captions),
                ("spurious_caption", "spurious_rows", self.with_spurious_captions),
            )
            if wanted and name in examples[0]
        }
        if not self.encode_captions and "caption_rows" in texts:
            batch["captions"] = texts.pop("caption_rows")
        batch.update(encode_rows(texts, self.encode_texts, filling=examples[0].get("caption", "")))
        return batch


def stack_examples(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The part of a batch that does not depend on its texts."""
    batch: dict[str, Any] = stack_features([example["image"] for example in examples])
    for name, key in _NUMBERS.items():
        if name in examples[0]:
            batch[key] = torch.tensor([example[name] for example in examples])
    if "group" in examples[0]:
        batch["groups"] = [example["group"] for example in examples]
    if reasons := [example["bad_image"] for example in examples if "bad_image" in example]:
        batch[BAD_IMAGES] = reasons
    return batch


def encode_rows(texts: Mapping[str, Sequence[str]], encode_texts: TextEncoding, filling: str = "") -> dict[str, Any]:
    """Arguments of the forward for the distinct ones of all texts, and under every key the rows of its own in them.

    Args:
        texts: lists of texts by key.
        encode_texts: turns texts into arguments of the model's forward.
        filling: what is encoded where there are no texts: the forward of a dual encoder takes at least one, even where
            no loss looks at it.
    """
    rows: dict[str, int] = {}
    batch: dict[str, Any] = {key: _rows_of(own, rows) for key, own in texts.items()}
    return {**batch, **encode_texts(list(rows) or [filling])}


_NUMBERS = {"sample": "sample_index", "label": "labels", "spurious_id": "spurious_ids", "valid": "valid"}


def _rows_of(texts: Sequence[str], rows: dict[str, int]) -> Tensor:
    """The row of every text among the distinct texts of the batch; new texts are appended to `rows`."""
    return torch.tensor([rows.setdefault(text, len(rows)) for text in texts])
