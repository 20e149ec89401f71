"""Evaluation sets as examples: each is classified, or evaluated by retrieval."""

from dataclasses import replace
from typing import Any

from starft_hf.data.class_mapping import resolve_mapped_columns
from starft_hf.data.columns import ColumnSettings, ImageColumns, resolve_evaluation_columns
from starft_hf.data.decoding import RAISE
from starft_hf.data.examples import EvaluationExampleMaker, Examples, as_examples
from starft_hf.data.image_cache import ImageCacheSettings
from starft_hf.data.images import ImagePreprocessor
from starft_hf.data.retrieval import AUTO, RetrievalExampleMaker, retrieval_columns


def evaluation_sets(
    dataset: Any,
    settings: ColumnSettings,
    training: ImageColumns | None,
    preprocessor: ImagePreprocessor,
    *,
    task: str = AUTO,
    class_mapping: Any = None,
    on_bad_image: str = RAISE,
    cache: ImageCacheSettings | None = None,
) -> Any:
    """The evaluation examples of a dataset, or of a dictionary of datasets by name; examples are returned unchanged.

    `training` has the columns of the training set, `preprocessor` prepares the images, `task` says how a set is
    evaluated, as for `retrieval_columns`, and `class_mapping` has the indices into the classes of the training set for
    every label, or a dictionary of these by name.
    """
    if dataset is None or isinstance(dataset, Examples):
        return dataset
    if isinstance(dataset, dict):
        mappings = class_mapping or {}
        shared: dict[str, Any] = {"task": task, "on_bad_image": on_bad_image, "cache": cache}
        return {
            name: evaluation_sets(part, settings, training, preprocessor, class_mapping=mappings.get(name), **shared)
            for name, part in dataset.items()
        }
    if class_mapping is not None:
        names = (training and training.class_names) or settings.class_names
        columns = resolve_mapped_columns(dataset, settings, class_mapping, names, what="eval_dataset")
    elif (found := retrieval_columns(dataset, settings, task, what="eval_dataset")) is not None:
        return as_examples(dataset, RetrievalExampleMaker(found, preprocessor), on_bad_image, cache=cache)
    else:
        training = training or ImageColumns(settings.image_column, None, None, None, None)
        # Images are classified by names of classes, so that their captions are not needed.
        settings = replace(settings, training=training, caption_column=None)
        columns = resolve_evaluation_columns(dataset, settings, what="eval_dataset")
    return as_examples(dataset, EvaluationExampleMaker(columns, preprocessor), on_bad_image, cache=cache)
