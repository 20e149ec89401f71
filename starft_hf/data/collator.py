"""From examples to the tensors of a step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from starft_hf.data.decoding import BAD_IMAGES
from starft_hf.data.images import stack_features
from starft_hf.models.pixels import ByteValues
from starft_hf.models.texts import TextEncoding
from starft_hf.utils.hashing import text_key


Collator = Callable[[list[Any]], dict[str, Any]]

_ROWS = {"caption": "caption_rows", "spurious_caption": "spurious_rows"}

# What examples and batches call the same numbers.
_NUMBERS = {
    **{"sample": "sample_index", "label": "labels", "valid": "valid"},
    **{"caption_id": "caption_ids", "spurious_id": "spurious_ids"},
}


@dataclass
class StarFTCollator:
    """Stacks images and encodes every distinct text of the batch once.

    A batch has the arguments of the model's forward, of which the images are bytes that `DualEncoder.normalized` turns
    into floats on the device, unless examples have floats. If examples have them, it also has:
        labels: class indices, `(N,)`.
        targets: 1 for every class of a row and 0 for the others, `(N, C)`, where rows have several.
        groups: names of the evaluation groups, a list of N strings.
        image_keys: for retrieval, a list of N strings, the same for rows with the same image.
        image_captions: for retrieval, all captions of every row, a list of N lists of strings.
        valid: whether a row is a sample rather than padding, `(N,)`, with several processes or on_bad_image="skip".
        bad_images: the reason for every row that is skipped because of its image.
        sample_index: `(N,)`, the key of the reference's cached image features.
        caption_rows, spurious_rows: `(N,)`, for every row the index of its (spurious) caption in the batch's texts.
        caption_keys: without labels, `(N,)`, equal numbers for equal captions.
        caption_ids, spurious_ids: `(N,)`, the ids of the (spurious) captions in the caption bank.
        captions, spurious_captions: lists of N strings in place of `caption_rows` and `spurious_rows`, if images are
            compared with classes: their texts belong to the whole batch, are only known in the step, and are encoded
            together with these.

    Args:
        encode_texts: turns texts into arguments of the model's forward; None where all embeddings are known.
        with_captions: whether a loss needs the captions of the rows.
        with_spurious_captions: whether a loss needs their spurious captions.
        encode_captions: whether to encode the texts here; False leaves them to the step.
    """

    encode_texts: TextEncoding | None
    with_captions: bool = True
    with_spurious_captions: bool = True
    encode_captions: bool = True

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = stack_examples(examples)
        texts: dict[str, list[str]] = {}
        for kind, is_needed in (("caption", self.with_captions), ("spurious_caption", self.with_spurious_captions)):
            if not is_needed or kind not in examples[0]:
                continue
            captions = [example[kind] for example in examples]
            if kind == "caption" and "label" not in examples[0] and "targets" not in examples[0]:
                batch["caption_keys"] = torch.tensor(list(map(text_key, captions)))
            if self.encode_captions:
                texts[_ROWS[kind]] = captions
            else:
                batch[f"{kind}s"] = captions
        return batch | encode_rows(texts, self.encode_texts, filling=examples[0].get("caption", ""))


@dataclass
class WithFloatImages:
    """A collator that expects images as the image processor returns them, and gets these in place of bytes."""

    collator: Collator
    byte_values: ByteValues

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return self.collator([{**example, "image": self._floats(example["image"])} for example in examples])

    def _floats(self, image: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.byte_values(it) if it.dtype == torch.uint8 else it for name, it in image.items()}


def stack_examples(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch without its texts."""
    batch: dict[str, Any] = stack_features([example["image"] for example in examples])
    for name, key in _NUMBERS.items():
        if name in examples[0]:
            batch[key] = torch.tensor([example[name] for example in examples])
    if "targets" in examples[0]:
        batch["targets"] = torch.from_numpy(np.stack([example["targets"] for example in examples]))
    if "group" in examples[0]:
        batch["groups"] = [example["group"] for example in examples]
    if "image_key" in examples[0]:
        batch["image_keys"] = [example["image_key"] for example in examples]
        batch["image_captions"] = [example["captions"] for example in examples]
    if reasons := [example["bad_image"] for example in examples if "bad_image" in example]:
        batch[BAD_IMAGES] = reasons
    return batch


def encode_rows(
    texts: Mapping[str, Sequence[str]], encode_texts: TextEncoding | None, filling: str = ""
) -> dict[str, Any]:
    """The distinct texts as arguments of the forward, and under every key the rows of its texts among them.

    Without texts it encodes `filling`, since the forward of a dual encoder takes at least one; without `encode_texts`
    there are the rows alone.
    """
    rows: dict[str, int] = {}
    batch = {key: torch.tensor([rows.setdefault(text, len(rows)) for text in own]) for key, own in texts.items()}
    return batch if encode_texts is None else {**batch, **encode_texts(list(rows) or [filling])}
