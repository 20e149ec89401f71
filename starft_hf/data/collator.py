"""From examples to the tensors of a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from starft_hf.data.images import stack_features
from starft_hf.data.opening import BAD_IMAGES
from starft_hf.texts import TextEncoding


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

    Args:
        encode_texts: turns texts into arguments of the model's forward.
        with_captions: whether a loss needs the captions of the rows.
        with_spurious_captions: whether a loss needs their spurious captions.
    """

    encode_texts: TextEncoding
    with_captions: bool = True
    with_spurious_captions: bool = True

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = stack_features([example["image"] for example in examples])
        for name, key in _NUMBERS.items():
            if name in examples[0]:
                batch[key] = torch.tensor([example[name] for example in examples])
        if "group" in examples[0]:
            batch["groups"] = [example["group"] for example in examples]

        reasons = [example["bad_image"] for example in examples if "bad_image" in example]
        if reasons:
            batch[BAD_IMAGES] = reasons

        rows: dict[str, int] = {}
        for name, key, wanted in (
            ("caption", "caption_rows", self.with_captions),
            ("spurious_caption", "spurious_rows", self.with_spurious_captions),
        ):
            if wanted and name in examples[0]:
                batch[key] = _rows_of([example[name] for example in examples], rows)
        # The forward of a dual encoder takes at least one text, even where no loss looks at it.
        texts = list(rows) or [examples[0].get("caption", "")]
        batch.update(self.encode_texts(texts))
        return batch


_NUMBERS = {"sample": "sample_index", "label": "labels", "spurious_id": "spurious_ids", "valid": "valid"}


def _rows_of(texts: Sequence[str], rows: dict[str, int]) -> Tensor:
    """The row of every text among the distinct texts of the batch; new texts are appended to `rows`."""
    return torch.tensor([rows.setdefault(text, len(rows)) for text in texts])
