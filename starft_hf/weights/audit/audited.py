"""The images of an audit as a fine-tuned model and its start see them, and the parts of an audit, one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import softmax
from tqdm.auto import tqdm

from starft_hf.data.decoding import ImageReader
from starft_hf.evaluation.intervals import worst_group_interval
from starft_hf.report.audit import ExplainedMistake, Forgotten, GroupAudit, Sensitivity
from starft_hf.spuriosity.correlates import Correlates, CorrelateSettings, Looked, find_correlates
from starft_hf.spuriosity.properties import measure_images
from starft_hf.spuriosity.vocabulary import has_lexicon, usable_words
from starft_hf.weights.audit.measuring import (
    Tower,
    compare_words,
    compared,
    measure_forgotten,
    measure_retention,
    measure_sensitivity,
    named_groups,
    worst_accuracy,
)
from starft_hf.weights.audit.saliency import saliency_map
from starft_hf.weights.repair.embedding import Embedder, seen_in_words
from starft_hf.weights.repair.groups import indices_of, pseudo_groups
from starft_hf.weights.repair.labeled import LabeledImages
from starft_hf.weights.repair.subject import Subject


BY_COLUMN, BY_PSEUDO_GROUPS, BY_CLASS = "group_column", "pseudo_groups", "classes"


class Audited:
    """The images that could be read, embedded by the model and by its start, and what of an audit can be measured.

    Args:
        subject: the models.
        images: those of the dataset.

    Attributes:
        towers: the model, and its start if there is one.
        rows: of the dataset, those whose images could be read, `(N,)`.
        labels: class indices, `(N,)`.
        named: the groups of the dataset, N names.
        answers: logits `(N, C)` of each tower.
        seen: what the start sees of the pool in every image; None if it sees nothing of it.
        pseudo: group indices of class and what is seen, or the labels.
        left_out: the parts that could not be measured, with the reason; methods add to it.

    Raises:
        ValueError: if no image could be read.
    """

    def __init__(self, subject: Subject, images: LabeledImages):
        embedder = Embedder(subject, images.dataset, images.columns, images.reading)
        self.subject, self.columns, self.reading = subject, images.columns, images.reading
        self.dataset, self.preprocessor = images.dataset, embedder.preprocessor
        self.left_out: dict[str, str] = {}
        labels, named = images.targets()
        self.towers = [Tower(subject, subject.model, subject.head, embedder)]
        if subject.start is not None:
            self.towers.append(Tower(subject, subject.start, None, embedder))
        # Without a start, the model itself says what images show.
        viewer = subject if subject.start is not None else replace(subject, start=subject.model)
        seen = None if subject.pool is None else seen_in_words(viewer, embedder)
        self.rows = np.flatnonzero(self.towers[0].images.any(1))
        if not len(self.rows):
            raise ValueError(f"none of the {len(labels)} images of dataset could be read")
        self.labels, self.named = labels[self.rows], [named[row] for row in self.rows]
        self.seen = None if seen is None else [seen[row] for row in self.rows]
        self.pseudo = self.labels if self.seen is None else pseudo_groups(self.labels, indices_of(self.seen)[0])
        for tower in self.towers:
            tower.only(self.rows)
        self.answers = [tower.logits() for tower in self.towers]

    @property
    def grouped_by(self) -> str:
        """What groups are."""
        return BY_COLUMN if self.columns.groups is not None else BY_CLASS if self.seen is None else BY_PSEUDO_GROUPS

    @property
    def group_names(self) -> list[str]:
        """The group of every image."""
        if self.grouped_by != BY_PSEUDO_GROUPS or self.seen is None:
            return self.named
        return named_groups(self.subject.class_names, self.labels, self.seen, self.pseudo)

    def groups(self) -> tuple[GroupAudit, dict[str, GroupAudit]]:
        """The models on all images and in every group."""
        return compared(self.answers, self.labels, self.group_names)

    def worst_interval(self) -> tuple[float, float]:
        """Of the accuracy of the model in the group that is the worst."""
        right = (self.answers[0].argmax(-1) == self.labels).astype(np.float64)
        return worst_group_interval(right, indices_of(self.group_names)[0])

    def sensitivity(self) -> Sensitivity | None:
        """How answers depend on the templates of the pool."""
        if self.seen is None:
            self.left_out["sensitivity"] = (
                "no template of the pool changes what the start sees in captions; pass spuriosity, another pool"
            )
            return None
        found = measure_sensitivity(self.towers, self.labels, self.answers)
        if found.shift is None:
            self.left_out["sensitivity.shift"] = "the model classifies by a linear head, which reads no captions"
        return found

    def score(self, sensitivity: Sensitivity | None) -> float:
        """The accuracy in the worst pseudo-group, times 1 less the largest gain of attraction."""
        gain = 0.0 if sensitivity is None else max(0.0, sensitivity.largest[2])
        return worst_accuracy(self.answers[0], self.labels, self.pseudo) * (1 - gain)

    def vocabulary(self, words: Sequence[str] | None) -> list[str]:
        """Those of the words, or None for those of the tokenizer, that images can be compared with."""
        found = usable_words(words, self.subject.encoder.encode_texts, self.subject.class_names)
        if words is None and not found:
            self.left_out["vocabulary"] = (
                "the tokenizer has no English words; pass vocabulary, a file with a word per line"
            )
        elif words is None and not has_lexicon():
            self.left_out["parts of speech"] = "pip install 'starft_hf[audit]' leaves only nouns and adjectives"
        return found

    def correlates(self, words: Sequence[str], settings: CorrelateSettings) -> Correlates:
        """The words, and the properties of images and files, that labels and mistakes are correlated with."""
        wrong = self.answers[0].argmax(1) != self.labels
        return find_correlates(self.looked(words), self.labels, wrong, self.subject.class_names, settings)

    def looked(self, words: Sequence[str]) -> Looked:
        """What images are compared by: words, and properties of images and files."""
        names = self.subject.class_names
        embeds, similarities = compare_words(self.towers[-1], words)
        own_names, rows = [names[label] for label in self.labels], self.rows.tolist()
        properties = measure_images(self.dataset, self.columns.image, rows, own_names, progress=self.reading.progress)
        if properties.unknown:
            self.left_out["properties"] = f"{properties.unknown} of {len(rows)} images could not be opened as files"
        return Looked(words, embeds, similarities, properties)

    def forgotten(self, words: Sequence[str], retention: Mapping[str, Any]) -> Forgotten | None:
        """How far texts, answers and other tasks have moved from the start."""
        if len(self.towers) == 1:
            self.left_out["forgotten"] = "the model before fine-tuning is unknown; pass start='its id or folder'"
        retained = measure_retention(self.towers, retention, self.reading)
        return measure_forgotten(self.towers, self.answers, words, retained)

    def mistakes(self, group: str, count: int) -> list[tuple[ExplainedMistake, Image.Image]]:
        """The most confident mistakes of the model in a group, with their images, explained for both models."""
        if not count:
            return []
        answers, confidence = self.answers[0].argmax(-1), softmax(self.answers[0], -1).max(-1)
        wrong = np.flatnonzero((np.array(self.group_names) == group) & (answers != self.labels))
        if not len(wrong):
            self.left_out["mistakes"] = "the model makes none in the worst group"
        chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
        reader = ImageReader(self.dataset, self.columns.image, self.preprocessor)
        found = []
        for place in tqdm(chosen, desc="Explaining mistakes", unit=" images", disable=not self.reading.progress):
            row = int(self.rows[place])
            image = reader.row(row)[self.columns.image]
            names, pair = self.subject.class_names, (int(answers[place]), int(self.labels[place]))
            maps = [
                saliency_map(tower, image, logits[place], pair)
                for tower, logits in zip(self.towers, self.answers, strict=True)
            ]
            mistake = ExplainedMistake(row, names[pair[1]], names[pair[0]], *maps)
            found.append((mistake, image.image))
        return found
