"""A repaired model in memory and in a folder: plain weights, or a head beside them, as everything loads them."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from starft_hf.hub.card_edits import update_card
from starft_hf.hub.classifier import Classifier
from starft_hf.hub.model_card import CardContent, render_card
from starft_hf.hub.record import RunRecord, make_record
from starft_hf.hub.snippets import Usage
from starft_hf.models.heads import head_from_weights, save_head
from starft_hf.models.modes import floating_dtype
from starft_hf.utils.files import folder_in_place_of
from starft_hf.weights.repair.embedded import Repair
from starft_hf.weights.repair.embedding import interpolated
from starft_hf.weights.repair.projections import fold
from starft_hf.weights.repair.subject import Subject


_UNKNOWN = {"id": None, "revision": None, "fingerprint": None}


def repaired(subject: Subject, repair: Repair) -> Classifier:
    """The repaired model as a classifier."""
    model, head = subject.model, subject.head
    if repair.alpha is not None:
        model, between = interpolated(subject, repair.alpha)
        head = between if subject.head is not None else None
    if repair.basis is not None:
        model = fold(model, repair.basis, texts=repair.of_texts)
    if repair.head is not None:
        wide = torch.promote_types(floating_dtype(model), torch.float32)
        head = head_from_weights(*(torch.from_numpy(part).to(wide) for part in repair.head))
    return Classifier(model, subject.processor, subject.class_names, subject.templates, head)


def write(classifier: Classifier, record: RunRecord, output: Path) -> None:
    """Write a repaired model with its record and its card into a new or empty folder, atomically."""
    with folder_in_place_of(output) as folder:
        classifier.model.save_pretrained(folder)
        classifier.processor.save_pretrained(folder)
        if classifier.head is not None and classifier.class_names is not None:
            save_head(classifier.head.state_dict(), classifier.class_names, folder)
        record.save(folder)
        usage = Usage(model_type=classifier.model.config.model_type)
        title, has_head = output.resolve().name, classifier.head is not None
        update_card(folder, render_card(CardContent(title, None, record, {}, {}, head=has_head, usage=usage)))


def record_of(subject: Subject, what: dict[str, Any]) -> RunRecord:
    """The record of the run, if there is one, with what was done after it."""
    config: dict[str, Any] = {"caption_template": list(subject.templates)}
    record = subject.record or make_record(
        config,
        None,
        None,
        class_names=subject.class_names,
        start=_UNKNOWN,
        reference=_UNKNOWN,
        processes=1,
        combined=True,
    )
    return dataclasses.replace(record, class_names=subject.class_names, repair=what)
