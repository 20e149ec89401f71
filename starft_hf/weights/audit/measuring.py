"""The parts of an audit, measured on the embeddings of a fine-tuned model and of its start."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import nn

from starft_hf.data.captions import class_caption
from starft_hf.data.embedding import check_finite
from starft_hf.data.images import stack_features
from starft_hf.data.rgb import ScaledImage
from starft_hf.evaluation.bootstrap import worst_group
from starft_hf.evaluation.evaluate import evaluate_zero_shot
from starft_hf.evaluation.forgetting import text_change, total_variation
from starft_hf.evaluation.intervals import accuracy_interval
from starft_hf.evaluation.metric_functions import calibration_bins, calibration_error
from starft_hf.evaluation.results import EvaluationResult
from starft_hf.evaluation.sensitivity import attraction, mean_by_class, shown_in
from starft_hf.models.encoder import logit_scale_of
from starft_hf.reference.factory import ReferenceSettings
from starft_hf.reference.live import FrozenReference
from starft_hf.reference.texts import embeds_of_texts
from starft_hf.report.audit import Forgotten, GroupAudit, Measured, Sensitivity
from starft_hf.spuriosity.scorer import class_subspace, readable_template, without_subspace
from starft_hf.spuriosity.vocabulary import WORD_CAPTION
from starft_hf.weights.repair.embedded import Floats, Ints, unit
from starft_hf.weights.repair.embedding import Embedder, ImageReading, pool_directions
from starft_hf.weights.repair.subject import Subject, in_float64


_BINS = 15
# Captions of classes, and words, whose similarities are compared before and after.
_COMPARED = 300


class Tower:
    """One of the two models: its embeddings of the images and of texts, and its answers."""

    def __init__(self, subject: Subject, model: nn.Module, head: nn.Linear | None, embedder: Embedder):
        self.subject, self.model, self.head, self.embedder = subject, model, head, embedder
        settings: ReferenceSettings = embedder.reading.settings
        self._store, self._progress = settings.store, settings.progress
        self._live, self._encoding = FrozenReference(model, subject.encoder), subject.encoder.encode_texts
        self.images: Floats = embedder.images(model)
        self.scale = float(logit_scale_of(model).detach())

    def only(self, rows: Ints) -> None:
        """Keep those of the images."""
        self.images = self.images[rows]

    def texts(self, texts: Sequence[str]) -> Floats:
        """Unit rows of texts, `(N, D)`, which are cached."""
        distinct = list(dict.fromkeys(texts))
        place = {text: row for row, text in enumerate(distinct)}
        rows, _ = embeds_of_texts(self._live, distinct, self._store, self.embedder.device, progress=self._progress)
        check_finite(rows, "embeddings of texts")
        found: Floats = in_float64(rows)[[place[text] for text in texts]]
        return found

    def captions(self, prompt: str, template: str | None = None) -> list[str]:
        """The captions of all classes."""
        return [class_caption(name, prompt, template, self._encoding) for name in self.subject.class_names]

    def logits(self) -> Floats:
        """The answers for the images, `(N, C)`."""
        return self.classify(self.images)

    def classify(self, images: Floats) -> Floats:
        """The answers for unit rows `(n, D)` of images, `(n, C)`, by the head or by the prompts of the classes."""
        weight, bias = self._classifier
        found: Floats = images @ weight.T + bias
        return found

    @cached_property
    def _classifier(self) -> tuple[Floats, Floats]:
        if self.head is not None:
            weight = in_float64(self.head.weight)
            return weight, np.zeros(len(weight)) if self.head.bias is None else in_float64(self.head.bias)
        prompts = self.subject.templates
        rows = self.texts([caption for prompt in prompts for caption in self.captions(prompt)])
        weight = self.scale * unit(rows.reshape(len(prompts), -1, rows.shape[1]).mean(0))
        return weight, np.zeros(len(weight))

    def embed(self, images: Sequence[ScaledImage]) -> Floats:
        """Unit rows of other images, `(n, D)`, which are not cached."""
        self._live.prepare(self.embedder.device)
        found, size = [], self.embedder.reading.batch_size
        for start in range(0, len(images), size):
            batch = stack_features(self.embedder.preprocessor.of_scaled(images[start : start + size]))
            on_device = {name: value.to(self.embedder.device) for name, value in batch.items()}
            found.append(in_float64(self._live.embed_images(on_device)))
        return np.concatenate(found)

    def shift(self, template: str) -> Floats:
        """How much the answers for the images move if all captions gain a template, `(N,)`."""
        prompt = self.subject.templates[0]
        plain, spurious = (self._by(self.texts(self.captions(prompt, added))) for added in (None, template))
        return total_variation(plain, spurious)

    def _by(self, texts: Floats) -> Floats:
        found: Floats = self.scale * self.images @ texts.T
        return found


def measured(logits: Floats, labels: Ints) -> Measured:
    """A model on images, by its logits `(N, C)`."""
    probabilities = softmax(logits, -1)
    right = probabilities.argmax(-1) == labels
    accuracy = float(right.mean())
    ece = calibration_error(calibration_bins(probabilities.max(-1), right, _BINS))
    return Measured(accuracy, accuracy_interval(accuracy, len(right)), ece)


def compared(
    answers: Sequence[Floats], labels: Ints, groups: Sequence[str]
) -> tuple[GroupAudit, dict[str, GroupAudit]]:
    """The model, and maybe its start, by their logits, on all images and in every group."""
    names, indices = np.unique(np.array(groups), return_inverse=True)

    def of(rows: Any) -> GroupAudit:
        return GroupAudit(len(labels[rows]), *(measured(logits[rows], labels[rows]) for logits in answers))

    return of(slice(None)), {str(name): of(indices.reshape(-1) == place) for place, name in enumerate(names)}


def worst_accuracy(logits: Floats, labels: Ints, groups: Ints) -> float:
    """The accuracy in the worst group."""
    right = (logits.argmax(-1) == labels)[None].astype(np.float64)
    return float(worst_group(right, groups, np.ones((1, len(labels))))[0, 0])


def named_groups(names: Sequence[str], labels: Ints, seen: Sequence[str], groups: Ints) -> list[str]:
    """Names of pseudo-groups: class and attribute, and that combinations with few images are among them."""
    found = {}
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        combinations = Counter((int(labels[row]), seen[row]) for row in rows.tolist())
        (label, words), _ = combinations.most_common(1)[0]
        if len({label for label, _ in combinations}) > 1:
            found[group] = "all others"
        else:
            found[group] = f"{names[label]}, {words}" + " or others" * (len(combinations) > 1)
    return [found[group] for group in groups]


def measure_sensitivity(towers: Sequence[Tower], labels: Ints, answers: Sequence[Floats]) -> Sensitivity:
    """How the answers of the model, and maybe of its start, depend on the templates of the pool."""
    viewer, subject = towers[-1], towers[0].subject
    pool, names = subject.pool, subject.class_names
    assert pool is not None
    used = [index for index in range(len(pool)) if any(index in pool.eligible(name) for name in names)]
    shown = shown_in(viewer.images, pool_directions(replace(subject, model=viewer.model), viewer.embedder))
    attracted = [attraction(softmax(logits, -1), labels, shown).tolist() for logits in answers]

    def shift(tower: Tower) -> list[list[float]] | None:
        if tower.head is not None:
            return None
        columns = [mean_by_class(tower.shift(pool[index]), labels, len(names)) for index in used]
        rows: list[list[float]] = np.stack(columns, 1).tolist()
        return rows

    shifts = [shift(tower) for tower in towers]
    return Sensitivity(
        templates=[readable_template(pool[index]) for index in used],
        attraction=attracted[0],
        attraction_before=attracted[1] if len(towers) > 1 else None,
        shift=shifts[0],
        shift_before=shifts[1] if len(towers) > 1 else None,
    )


def measure_forgotten(
    towers: Sequence[Tower],
    answers: Sequence[Floats],
    words: Sequence[str],
    retention: Mapping[str, Mapping[str, float | None]],
) -> Forgotten | None:
    """How far texts and answers have moved from those of the start; None without a start and retention sets."""
    if len(towers) == 1:
        return Forgotten(None, None, None, retention) if retention else None
    tuned, start = towers
    prompt, pool = tuned.subject.templates[0], tuned.subject.pool
    texts = tuned.captions(prompt)[:_COMPARED]
    texts += [tuned.captions(prompt, template)[0] for template in pool or ()]
    texts += [WORD_CAPTION.format(word) for word in words[:_COMPARED]]
    texts = list(dict.fromkeys(texts))
    change = text_change(start.texts(texts), tuned.texts(texts), start.scale)
    changed = float((answers[0].argmax(-1) != answers[1].argmax(-1)).mean())
    return Forgotten(change.rank_change, change.divergence, changed, retention)


def measure_retention(
    towers: Sequence[Tower], datasets: Mapping[str, Any], reading: ImageReading
) -> dict[str, dict[str, float | None]]:
    """The accuracy "after", and that of the start "before", on datasets of other tasks, classified zero-shot."""
    shared = ("batch_size", "num_workers", "on_bad_image", "progress")
    settings = {name: getattr(reading, name) for name in shared}
    found = {}
    for name, dataset in datasets.items():
        results = [
            evaluate_zero_shot(
                tower.model, tower.subject.processor, dataset, templates=tower.subject.templates, **settings
            )
            for tower in towers
        ]
        # Retention sets have one class per image.
        accuracies: list[float | None] = [cast(EvaluationResult, result).accuracy for result in results]
        found[name] = dict(zip(("after", "before"), [*accuracies, None], strict=False))
    return found


def compare_words(viewer: Tower, words: Sequence[str]) -> tuple[Floats, NDArray[np.float32]]:
    """Unit rows of words without what distinguishes classes, `(W, D)`, and their cosines with images, `(N, W)`."""
    if not words:
        return np.zeros((0, viewer.images.shape[1])), np.zeros((len(viewer.images), 0), dtype=np.float32)
    rows = torch.from_numpy(viewer.texts([WORD_CAPTION.format(word) for word in words]))
    basis = class_subspace(torch.from_numpy(viewer.texts(viewer.captions(viewer.subject.templates[0]))))
    embeds = unit(without_subspace(rows - rows.mean(0), basis).numpy())
    return embeds, (viewer.images @ embeds.T).astype(np.float32)
