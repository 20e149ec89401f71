"""Evaluation sets for retrieval: images with captions, and which rows have the same image."""

from collections.abc import Sequence
from typing import Any

from starft_hf.data.captions import captions_of
from starft_hf.data.columns import ColumnSettings, ImageColumns, check_captions, resolve_columns
from starft_hf.data.decoding import Row
from starft_hf.data.examples import Example, ImageExampleMaker
from starft_hf.data.source import check_dataset, column_names
from starft_hf.utils.hashing import tensors_digest
from starft_hf.utils.names import unknown_name


AUTO, CLASSIFICATION, RETRIEVAL = "auto", "classification", "retrieval"
EVALUATION_TASKS = (AUTO, CLASSIFICATION, RETRIEVAL)

# The column with captions of a dataset without labels, where no other is named.
CAPTION_COLUMN = "caption"


class RetrievalExampleMaker(ImageExampleMaker):
    """Makes examples for retrieval: "captions", all of the row, and "image_key" beside the image.

    Rows have the same image if the model gets the same pixels of it, whatever the file. That is known of any dataset,
    and is the same whether or not images are cached.
    """

    def __call__(self, rows: Sequence[Row], samples: Sequence[int], where: Sequence[str]) -> list[Example]:
        examples = super().__call__(rows, samples, where)
        for example in examples:
            example["image_key"] = tensors_digest(example["image"])
        return examples

    def targets(self, row: Row, sample: int) -> Example:
        assert self.columns.caption is not None
        return {"captions": captions_of(row[self.columns.caption], self.columns.caption)}

    def blank_targets(self, sample: int) -> Example:
        return {"captions": [], "image_key": ""}


def retrieval_columns(dataset: Any, settings: ColumnSettings, task: str = AUTO, *, what: str) -> ImageColumns | None:
    """The columns of a dataset that is evaluated by retrieval; None for one whose images are to be classified.

    With the task "auto" that is a dataset with captions and without labels. Captions are in the column that `settings`
    names, or else in "caption".

    Raises:
        ValueError: if the task is "retrieval" and there is no such column, or a row has no caption.
    """
    if task not in EVALUATION_TASKS:
        raise ValueError(unknown_name("task", task, EVALUATION_TASKS))
    check_dataset(dataset, what)
    if task == CLASSIFICATION:
        return None
    caption, present = settings.caption_column or CAPTION_COLUMN, column_names(dataset)
    # Of an iterable dataset that does not name its columns, nothing is known.
    if task == AUTO and (present is None or settings.label_column in present or caption not in present):
        return None
    columns = resolve_columns(dataset, ColumnSettings(settings.image_column, None, caption), what=what)
    check_captions(dataset, columns, what=what, most=None)
    return columns
