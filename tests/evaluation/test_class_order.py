"""Classes of labels, of class names and of a head, in whatever order; and how they are compared."""

import pytest
import torch
from datasets import ClassLabel

from starft_hf import evaluate_zero_shot
from starft_hf.data.columns import ColumnSettings, resolve_columns
from starft_hf.evaluation.loop import ClassifierEvaluation
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.heads import head_from_weights
from tests.support.tiny import CLASS_NAMES


def test_classes_and_the_rows_of_a_head_are_matched_by_name(clip, processor, dataset):
    order = ["truck", "fern", "owl", "violin"]
    expected = evaluate_zero_shot(clip, processor, dataset, progress=False)
    given = evaluate_zero_shot(clip, processor, dataset, class_names=order, progress=False)
    assert given.accuracy == expected.accuracy
    assert given.group_accuracies == expected.group_accuracies
    head = head_from_weights(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)))
    head.class_names = tuple(CLASS_NAMES)
    expected = evaluate_zero_shot(clip, processor, dataset, head=head, progress=False)
    for settings in ({"class_names": order}, {"class_names": CLASS_NAMES}):
        found = evaluate_zero_shot(clip, processor, dataset, head=head, progress=False, **settings)
        assert found.accuracy == expected.accuracy
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    # Of rows of two classes, the head has no others.
    few = dataset.cast_column("label", ClassLabel(names=CLASS_NAMES)).filter(lambda row: row["label"] > 1)
    few = few.map(lambda row: {"label": row["label"] - 2}, features=few.features)
    few = few.cast_column("label", ClassLabel(names=CLASS_NAMES[2:]))
    rows = head_from_weights(head.weight[2:].detach())
    found, wanted = (evaluate_zero_shot(clip, processor, few, head=each, progress=False) for each in (head, rows))
    assert found.as_dict() == wanted.as_dict()


def test_a_head_with_other_classes_is_refused(clip, processor, dataset):
    head = head_from_weights(torch.randn(4, 32))
    head.class_names = ("fern", "owl", "mole", "newt")
    with pytest.raises(ValueError, match=r"head has the classes \['fern', .*has 'owl' in another place"):
        evaluate_zero_shot(clip, processor, dataset, head=head, progress=False)
    # What only has other names is the same.
    head.class_names = ("strix", "lorry", "viola", "polypody")
    unnamed = head_from_weights(head.weight.detach())
    found, wanted = (
        evaluate_zero_shot(clip, processor, dataset, head=each, progress=False) for each in (head, unnamed)
    )
    assert found.as_dict() == wanted.as_dict()


def test_classes_are_compared_in_float32_under_autocast(clip, processor, dataset):
    """In bfloat16 many logits would be equal, and the first class would win."""
    encoder = DualEncoder.of(clip, processor)
    columns = resolve_columns(dataset, ColumnSettings(), what="dataset")
    evaluation = ClassifierEvaluation(encoder, columns, ["a photo of a {}."])
    pixels = processor(images=dataset["image"][:], return_tensors="pt")["pixel_values"]
    batch = {"pixel_values": pixels, "labels": torch.tensor(dataset["label"]), "groups": [""] * len(dataset)}
    with torch.autocast("cpu", torch.bfloat16):
        logits = evaluation.step(clip, batch)
        with torch.no_grad():
            embeds = encoder.encode(clip, images={"pixel_values": pixels})
    assert logits.dtype == torch.float32
    assert torch.equal(logits, embeds @ evaluation._weights.T)
