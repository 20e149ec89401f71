"""The validation set and the prompts as a fine-tuned model, its start and interpolations of both embed them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from starft_hf.data import embedding
from starft_hf.data.captions import class_caption
from starft_hf.data.columns import ImageColumns, read_column
from starft_hf.data.decoding import RAISE, check_on_bad_image
from starft_hf.data.examples import EvaluationExampleMaker, IndexedExamples, image_examples
from starft_hf.data.groups import resolve_groups
from starft_hf.data.image_cache import ImageCacheSettings, given_image_cache
from starft_hf.data.images import SCALED, ImagePreprocessor, check_image_decoding
from starft_hf.data.source import column_names, is_fingerprinted
from starft_hf.evaluation.zero_shot import zero_shot_head
from starft_hf.models.encoder import logit_scale_of
from starft_hf.models.modes import evaluation_mode
from starft_hf.reference.factory import ReferenceSettings
from starft_hf.reference.live import FrozenReference
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.spuriosity.scorer import Scorer, readable_template, scorer_from
from starft_hf.weights.interpolation import interpolate, mixed
from starft_hf.weights.repair.embedded import Embedded, Floats, Ints, unit
from starft_hf.weights.repair.subject import Subject, in_float64


# A direction of the pool is averaged over no more classes.
_CLASSES_PER_TEMPLATE = 8


@dataclass(frozen=True)
class ImageReading:
    """How images are read and embedded, and where that is cached: arguments of `repair`, which explains them.

    Raises:
        ValueError: if one is none of its choices.
    """

    batch_size: int = 64
    num_workers: int = 0
    on_bad_image: str = RAISE
    image_decoding: str = SCALED
    image_cache: str | PathLike[str] | bool | None = None
    cache_dir: str | PathLike[str] | None = None
    device: str | torch.device | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_on_bad_image(self.on_bad_image)
        check_image_decoding(self.image_decoding)

    @property
    def settings(self) -> ReferenceSettings:
        """How embeddings are computed and cached."""
        folder = None if self.cache_dir is None else str(self.cache_dir)
        return ReferenceSettings(
            cache_dir=folder, batch_size=self.batch_size, num_workers=self.num_workers, progress=self.progress
        )

    def image_cache_of(self, dataset: Any) -> ImageCacheSettings | None:
        """Where decoded images of `dataset` are kept; ValueError if they cannot be."""
        return given_image_cache(self.image_cache, dataset, self.num_workers, self.progress)


class Embedder:
    """Embeds the images of a dataset by several models, all of one architecture, with the reference's cache."""

    def __init__(self, subject: Subject, dataset: Any, columns: ImageColumns, reading: ImageReading):
        self.subject, self.reading = subject, reading
        self.preprocessor = ImagePreprocessor(subject.encoder.image_processor, decoding=reading.image_decoding)
        maker = EvaluationExampleMaker(columns, self.preprocessor)
        self.device = torch.device(reading.device or next(subject.model.parameters()).device)
        examples = IndexedExamples(dataset, maker, reading.on_bad_image, reading.image_cache_of(dataset))
        examples.prepare(self.device)
        self.examples = image_examples(examples)

    def images(self, model: nn.Module) -> Floats:
        """Unit rows of all images, `(N, D)`; a row of zeros for one that could not be read."""
        store = self.reading.settings.store if is_fingerprinted(self.examples.dataset) else None
        cached = self.reading.settings.images(self.examples, store)
        cached.prepare(FrozenReference(model, self.subject.encoder), self.device)
        embeds = cached.all_rows()
        embedding.check_finite(embeds, "embeddings of images")
        rows: Floats = in_float64(embeds)
        return rows

    def texts(self, model: nn.Module, texts: Sequence[str]) -> Floats:
        """Unit rows of texts, `(N, D)`."""
        distinct = list(dict.fromkeys(texts))
        place = {text: row for row, text in enumerate(distinct)}
        with evaluation_mode(model):
            rows = embedding.embed_texts(
                lambda chunk: self.subject.encoder.encode(model, texts=chunk), distinct, sort_key=str
            )
        embedding.check_finite(rows, "embeddings of texts")
        found: Floats = in_float64(rows)[[place[text] for text in texts]]
        return found


def targets(dataset: Any, columns: ImageColumns) -> tuple[Ints, list[str]]:
    """The class index `(N,)` and the name of the group of every row."""
    used = [column for column in columns.used if column not in (columns.image, columns.caption)]
    rows = _rows(dataset, used)
    return np.array([columns.label_of(row) for row in rows]), [columns.group_of(row) for row in rows]


def clusters_of(dataset: Any, column: str) -> list[str]:
    """The cluster of every row by a column; ValueError if there is no such column, or a row has no single value."""
    clusters = resolve_groups(dataset, column)
    if clusters is None:
        raise ValueError(
            f"dataset has no column {column!r}; its columns are {column_names(dataset)}. Set cluster_column to the "
            "right one"
        )
    return [clusters.of(row) for row in _rows(dataset, clusters.columns)]


def _rows(dataset: Any, columns: Sequence[str]) -> list[dict[str, Any]]:
    """All rows, with these columns alone."""
    if hasattr(dataset, "select_columns"):
        values = [read_column(dataset, column) for column in columns]
        return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
    return [{column: dataset[index][column] for column in columns} for index in range(len(dataset))]


def embed(subject: Subject, embedder: Embedder, labels: Ints, alphas: Sequence[float]) -> Embedded:
    """What repairs are fitted on; groups are the classes as yet, and unreadable images have rows of zeros.

    Args:
        subject: the models.
        embedder: of its images.
        labels: class indices `(N,)`.
        alphas: of interpolations with the start, if there is one; the first is 0, the start itself.
    """
    model, encoder = subject.model, subject.encoder
    names, templates = subject.class_names, subject.templates
    captions = [
        class_caption(name, template, encoding=encoder.encode_texts) for name in names for template in templates
    ]
    prompts = embedder.texts(model, captions).reshape(len(names), len(templates), -1)
    head = None
    if subject.head is not None:
        bias = np.zeros(len(names)) if subject.head.bias is None else in_float64(subject.head.bias)
        head = (in_float64(subject.head.weight), bias)
    logits: dict[float, Floats] = {}
    for alpha in alphas if subject.start is not None else ():
        between, own = interpolated(subject, alpha)
        logits[alpha] = embedder.images(between) @ in_float64(own.weight).T + in_float64(own.bias)
    pool = attributes = None
    if subject.pool is not None:
        pool = pool_directions(subject, embedder)
        attributes = embedder.texts(model, _distinct_attributes(subject.pool))
    return Embedded(
        images=embedder.images(model),
        labels=labels,
        groups=labels,
        prompts=prompts,
        scale=float(logit_scale_of(model).detach()),
        head=head,
        mixed=logits,
        start_logits=logits.get(0.0),
        pool=pool,
        attributes=attributes,
    )


def interpolated(subject: Subject, alpha: float) -> tuple[nn.Module, nn.Linear]:
    """The model between the start and the fine-tuned one, and its head: that of its prompts, unless one is trained.

    A trained head is mixed with the zero-shot head of the start, as `interpolate` mixes them.
    """
    assert subject.start is not None
    model = interpolate(subject.start, subject.model, alpha)
    if subject.head is None:
        return model, zero_shot_head(model, subject.encoder, subject.class_names, subject.templates)
    head: Any = zero_shot_head(subject.start, subject.encoder, subject.class_names, subject.templates)
    own = subject.head.state_dict()
    head.load_state_dict({name: mixed(value, own[name], alpha) for name, value in head.state_dict().items()})
    return model, head


def pool_directions(subject: Subject, embedder: Embedder) -> Floats:
    """What every template of the pool adds to the embedding of a plain caption, averaged over classes, `(T, D)`."""
    pool, encoding = subject.pool, subject.encoder.encode_texts
    assert pool is not None
    plain, spurious, rows = [], [], []
    for index, template in enumerate(pool):
        names = [name for name in subject.class_names if index in pool.eligible(name)][:_CLASSES_PER_TEMPLATE]
        for name in names:
            plain.append(class_caption(name, subject.templates[0], encoding=encoding))
            spurious.append(class_caption(name, subject.templates[0], template, encoding))
            rows.append(index)
    embeds = embedder.texts(subject.model, [*plain, *spurious])
    added = embeds[len(plain) :] - embeds[: len(plain)]
    return np.stack([added[np.array(rows) == index].mean(0) for index in dict.fromkeys(rows)])


def _distinct_attributes(pool: SpuriosityPool) -> list[str]:
    return list(dict.fromkeys(readable_template(template) for template in pool))


def seen_attributes(subject: Subject, embedder: Embedder) -> Ints | None:
    """For every image the combination of attributes of the pool that the start sees in it, `(N,)`.

    None if the start can tell no template from the plain caption.
    """
    seen = _seen(subject, embedder)
    if seen is None:
        return None
    found: Ints = np.unique(np.stack(list(seen[1].values())), axis=1, return_inverse=True)[1].reshape(-1)
    return found


def seen_in_words(subject: Subject, embedder: Embedder) -> list[str] | None:
    """`seen_attributes` in words, such as "in the snow"."""
    seen = _seen(subject, embedder)
    if seen is None:
        return None
    names = [*(attribute.name for attribute in seen[0].attributes), "none of the templates"]
    return [", ".join(dict.fromkeys(names[index] for index in row)) for row in zip(*seen[1].values(), strict=True)]


def _seen(subject: Subject, embedder: Embedder) -> tuple[Scorer, dict[str, Ints]] | None:
    assert subject.start is not None
    assert subject.pool is not None
    start = subject.start

    def embed_texts(texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(embedder.texts(start, texts)).float()

    encoding = subject.encoder.encode_texts
    scorer = scorer_from(embed_texts, encoding, subject.class_names, subject.pool, subject.templates[:1])
    if not scorer.attributes:
        return None
    return scorer, scorer(torch.from_numpy(embedder.images(start)).float())


def readable_rows(data: Embedded) -> Embedded:
    """The data without images that could not be read."""
    kept = data.images.any(1)
    if kept.all():
        return data
    choose: Callable[[Any], Any] = lambda rows: rows[kept]  # noqa: E731
    return replace(
        data,
        images=unit(choose(data.images)),
        labels=choose(data.labels),
        groups=choose(data.groups),
        mixed={alpha: choose(logits) for alpha, logits in data.mixed.items()},
        start_logits=None if data.start_logits is None else choose(data.start_logits),
        clusters=None if data.clusters is None else np.unique(choose(data.clusters), return_inverse=True)[1],
    )
