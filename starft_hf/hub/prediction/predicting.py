"""Predictions for the images of a dataset: the model's most probable classes for each, labeled or not."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers.utils import logging

from starft_hf.data.captions import check_caption_templates
from starft_hf.data.decoding import RAISE, check_on_bad_image
from starft_hf.data.fingerprint import preprocessing_fingerprint
from starft_hf.data.image_cache import given_image_cache
from starft_hf.data.images import SCALED, ImagePreprocessor, check_image_decoding
from starft_hf.evaluation.validation import check_positive
from starft_hf.hub.classifier import Classifier, load
from starft_hf.hub.prediction.blocks import Blocks, Pieces, remove_pieces
from starft_hf.hub.prediction.rows import file_names
from starft_hf.hub.prediction.source import RowFacts, Source, images_of
from starft_hf.hub.prediction.table import check_output, table_of, top_classes, write_table
from starft_hf.models.adapters import is_adapted
from starft_hf.reference.fingerprint import model_fingerprint, texts_fingerprint
from starft_hf.utils.collectives import is_local_main_process, run_on_main_process
from starft_hf.utils.files import expanded
from starft_hf.utils.hashing import digest, tensors_digest
from starft_hf.utils.names import check_distinct, check_names


logger = logging.get_logger(__name__)

TOP_K = 5


def predict(
    model: Classifier | str | os.PathLike[str],
    dataset: Any,
    *,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    top_k: int = TOP_K,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] | str | None = None,
    use_head: bool = True,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | Sequence[str] | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    dtype: torch.dtype | None = None,
    on_bad_image: str = RAISE,
    image_decoding: str = SCALED,
    image_cache: str | os.PathLike[str] | bool | None = None,
    progress: bool = True,
) -> Dataset:
    """Classify images, labeled or not, and return a table with a row for each, in the order of the dataset.

    Its columns are "file", or "row" where images are not in files of distinct names; "prediction" and "confidence",
    the most probable class and its probability; "predictions" for images that may have several classes, those with a
    probability of at least 0.5, as "owl|fern"; "top_2", "top_2_confidence", "top_3" and so on; and then "label",
    "group" and, if there are several, "split", as far as the dataset has them. The probabilities are those that the
    loaded model gives for the files of the images, `load(model)(paths)`.

    In a process group, as a Trainer or `accelerate.PartialState()` sets it up, each process classifies part of the
    images, and all of them return the whole table, which is the same as that of one process.

    Args:
        model: what `load` returns, or a folder or a Hub id for it.
        dataset: a `datasets` Dataset or IterableDataset, a dictionary of them by split, any dataset whose rows are
            mappings and can be read by index, or what `starft predict` takes: a Hub id, a folder of images with or
            without labels, a table or list of paths, shards, or a single image.
        output: a .csv, .parquet or .jsonl file to write the table to. Until all images are classified, what is
            finished is kept in a folder beside it, and a repeated call resumes there if model, images and settings
            are the same. Datasets with a transform, and those that are not of `datasets`, start again.
        overwrite: whether to replace `output` if it exists.
        top_k: how many classes of each image to name, at most.
        class_names: the classes; None: those of the model, or else those of the labels.
        templates: prompts with `{}` for the class name; None: those of the model.
        use_head: whether to use the model's linear head, if it has one, rather than prompts.
        image_column: column with the images; None: "image", or else the only one of images.
        label_column: column with the labels, of which numbers without names are positions in the classes; None:
            "label", where there is one. Several classes of an image are written as "owl|fern".
        group_column: column that names a row's group, or several whose combinations do; None names none.
        batch_size: images per forward. The last digits of probabilities depend on it.
        num_workers: processes that load images; the rows of iterable datasets are read in order, by this process.
        dtype: autocast dtype of the model, such as `torch.bfloat16`; None: the model's own.
        on_bad_image: what to do about a row whose image cannot be read: "raise" raises an error that names it; "skip"
            leaves its predictions empty, with a warning.
        image_decoding: "scaled" decodes an image at no more than the size that resizing it well takes; "full" decodes
            all its pixels.
        image_cache: "auto" or True, for `starft` under HF_HOME, or a folder: what the model gets of the images is kept
            there, and further predictions and evaluations read it. None keeps nothing.
        progress: whether to show a progress bar.

    Raises:
        FileExistsError: if `output` exists.
        ValueError: if data, classes or settings do not fit, before the first forward.
    """
    target = None if output is None else expanded(output)
    if target is not None:
        check_output(target, overwrite)
    check_on_bad_image(on_bad_image)
    check_image_decoding(image_decoding)
    for name, number in (("top_k", top_k), ("batch_size", batch_size)):
        check_positive(name, number)
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is {dtype!r}; pass torch.bfloat16, torch.float16 or None, for the model's own")
    if templates is not None:
        templates = [templates] if isinstance(templates, str) else list(templates)
        check_caption_templates("templates", templates)
    if class_names is not None:
        check_names(class_names)
        check_distinct(class_names)
    source = Source(images_of(dataset, image_column, label_column), image_column, label_column, group_column)
    cache = given_image_cache(image_cache, source.joined, num_workers, progress)
    if source.is_iterable and num_workers:
        logger.warning("num_workers has no effect: the rows of an iterable dataset are read in order.")

    classifier = _with_classes(_loaded(model), class_names, templates, use_head, source)
    names = classifier.class_names or ()
    source.set_classes(names)
    top_k = min(top_k, len(names))
    kept = len(names) if classifier.multi_label else top_k
    key = None
    if target is not None and (data := source.fingerprint()) is not None:
        own = _fingerprint(classifier, image_decoding)
        key = digest([own, data, kept, batch_size, str(dtype), on_bad_image])
    blocks = Blocks(Pieces(target, key), batch_size, num_workers, progress)
    preprocessor = ImagePreprocessor(classifier.encoder.image_processor, decoding=image_decoding)

    def score(images: Mapping[str, Tensor]) -> Tensor:
        return top_classes(classifier.probabilities(images, dtype), kept)

    if source.is_iterable:
        facts = RowFacts()
        rows = blocks.score_stream(source.stream(preprocessor, on_bad_image, facts), score)
    else:
        examples = source.examples(preprocessor, on_bad_image, cache)
        examples.prepare(next(classifier.model.parameters()).device)
        facts, rows = source.facts(), blocks.score(examples, score)
    files, several = file_names(facts.paths, source.images.root), classifier.multi_label
    table = table_of(files, rows, names, source.known(facts), top_k, multi_label=several)
    if target is not None:
        run_on_main_process(lambda: write_table(table, target))
        if is_local_main_process():
            remove_pieces(target)
    return table


def _loaded(model: Any) -> Classifier:
    if isinstance(model, Classifier):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(
            f"model is a {type(model).__name__}; pass what starft_hf.load returns, or a folder or a Hub id for it"
        )
    classifier = load(model)
    classifier.model.to(default_device())
    return classifier


def default_device() -> torch.device:
    """The GPU of this process, if there is one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _with_classes(
    saved: Classifier, names: Sequence[str] | None, templates: Sequence[str] | None, use_head: bool, source: Source
) -> Classifier:
    """The classifier of the classes that were passed, or those of the model, or else those of the labels."""
    if saved.head is not None and use_head:
        if templates is not None or (names is not None and tuple(names) != saved.class_names):
            what = "templates" if templates is not None else "class_names"
            raise ValueError(
                f"{what} would have no effect: the model has a linear head over its own "
                f"{len(saved.class_names or ())} classes; pass use_head=False to classify by prompts"
            )
        return saved
    chosen = names or saved.class_names
    if chosen is None:
        chosen = source.class_names()
        if chosen is None:
            raise ValueError("the model has no classes of its own, and the images no labels; pass class_names=[...]")
        logger.warning("The classes are those of the dataset: %s.", ", ".join(map(repr, chosen[:8])))
    if saved.head is None and tuple(chosen) == saved.class_names and templates is None:
        return saved
    return saved.with_classes(chosen, templates)


def _fingerprint(classifier: Classifier, image_decoding: str) -> str:
    """A key of everything that the probabilities of an image depend on."""
    model, head, encoder = classifier.model, classifier.head, classifier.encoder
    adapter = {}
    if is_adapted(model):
        adapter = {name: config.to_dict() for name, config in model.peft_config.items()}
        adapter["state"] = tensors_digest(model.state_dict())
    return digest(
        [
            model_fingerprint(model),
            _sorted(adapter),
            None if head is None else tensors_digest(head.state_dict()),
            [classifier.class_names, classifier.multi_label],
            texts_fingerprint(encoder, () if head is not None else classifier.templates),
            preprocessing_fingerprint(encoder.image_processor, image_decoding),
        ]
    )


def _sorted(value: Any) -> Any:
    """The same with sets, whose order changes from process to process, as lists."""
    if isinstance(value, dict):
        return {name: _sorted(part) for name, part in value.items()}
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else value
