import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss

from starft_hf.evaluation import ClassificationCounts, zero_shot_weights
from starft_hf.models.encoder import DualEncoder, logit_scale_of


def counted(logits, labels, groups, sizes=None, **kwargs):
    counts = ClassificationCounts(**kwargs)
    start = 0
    for size in sizes or [len(labels)]:
        stop = start + size
        counts.update(logits[start:stop], labels[start:stop], groups[start:stop])
        start = stop
    return counts


def test_a_table_worked_out_by_hand():
    # Confidences 0.9, 0.6, 0.6, 0.8 for class 0; rows 0, 2 and 3 are right about it.
    confidence = torch.tensor([0.9, 0.6, 0.6, 0.8], dtype=torch.float64)
    logits = torch.stack([confidence, 1 - confidence], -1).log()
    counts = counted(logits, torch.tensor([0, 1, 0, 0]), ["a", "a", "b", "b"], num_bins=5)
    metrics = counts.result({"a": 0.9, "b": 0.1}).metrics()
    assert metrics["accuracy"] == 0.75
    assert metrics["accuracy_a"] == metrics["worst_group_accuracy"] == 0.5
    assert metrics["accuracy_b"] == 1.0
    assert metrics["group_adjusted_accuracy"] == pytest.approx(0.9 * 0.5 + 0.1 * 1.0)
    # Bin (0.4, 0.6]: accuracy 0.5, confidence 0.6; bin (0.6, 0.8]: 1 and 0.8; bin (0.8, 1]: 1 and 0.9.
    assert metrics["ece"] == pytest.approx(0.5 * 0.1 + 0.25 * 0.2 + 0.25 * 0.1)
    assert metrics["loss"] == pytest.approx(-np.log([0.9, 0.4, 0.6, 0.8]).mean())


def test_equal_logits_are_in_the_bin_whose_edge_they_are():
    counts = counted(torch.ones(1, 5), torch.tensor([0]), ["a"])
    assert [part.count for part in counts.result().bins].index(1) == 2  # 1/5 is 3/15


@st.composite
def predictions(draw):
    rows, classes = draw(st.integers(1, 40)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    logits = torch.tensor(rng.normal(0, 3, (rows, classes)))
    labels = torch.tensor(rng.integers(classes, size=rows))
    return logits, labels, [f"g{group}" for group in rng.integers(3, size=rows)]


@given(predictions(), st.data())
@settings(deadline=None)
def test_splitting_into_batches_changes_nothing(table, data):
    logits, labels, groups = table
    cut = data.draw(st.integers(0, len(labels)))
    whole = counted(logits, labels, groups).result().metrics()
    parts = counted(logits, labels, groups, [cut, len(labels) - cut]).result().metrics()
    assert parts == pytest.approx(whole)


@given(predictions())
@settings(deadline=None)
def test_relabelling_groups_changes_nothing(table):
    logits, labels, groups = table
    names = {"g0": "z", "g1": "m", "g2": "a"}
    before = counted(logits, labels, groups).result().metrics()
    after = counted(logits, labels, [names[group] for group in groups]).result().metrics()
    for name in ("loss", "accuracy", "worst_group_accuracy", "ece"):
        assert after[name] == pytest.approx(before[name])


@given(predictions())
@settings(deadline=None)
def test_scikit_learn_agrees(table):
    logits, labels, groups = table
    metrics = counted(logits, labels, groups).result().metrics()
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(-1)))
    expected = log_loss(labels, logits.softmax(-1), labels=range(logits.shape[1]))
    assert metrics["loss"] == pytest.approx(expected)
    counts = counted(logits, labels, groups, [len(labels) // 2, len(labels) - len(labels) // 2])
    # Of the classes that occur among the labels, as in WILDS.
    expected = f1_score(labels, logits.argmax(-1), average="macro", labels=labels.unique())
    assert counts.result().macro_f1 == pytest.approx(expected)


def test_shares_of_groups_that_are_not_evaluated_do_not_count():
    logits = torch.eye(2).repeat(2, 1)
    counts = counted(logits, torch.tensor([0, 1, 1, 1]), ["a", "a", "b", "b"])
    assert counts.result({"a": 0.3, "b": 0.1, "c": 0.6}).metrics()["group_adjusted_accuracy"] == pytest.approx(
        (0.3 * 1 + 0.1 * 0.5) / 0.4
    )
    assert "group_adjusted_accuracy" not in counts.result({"c": 1.0}).metrics()
    assert "group_adjusted_accuracy" not in counts.result().metrics()


def test_nothing_counted_is_an_error():
    with pytest.raises(ValueError, match="no rows"):
        ClassificationCounts().result().metrics()


@pytest.mark.parametrize("chunk_size", [1, 3, 256])
def test_a_zero_shot_classifier_averages_prompts_on_the_sphere(clip, processor, chunk_size):
    clip = clip.double().eval()
    names, templates = ["owl", "fire_truck"], ["a photo of a {}.", "a photo of a {} in the snow."]
    weights = zero_shot_weights(clip, DualEncoder.of(clip, processor), names, templates, chunk_size=chunk_size)
    for row, name in enumerate(["owl", "fire truck"]):
        tokens = processor.tokenizer(
            [template.format(name) for template in templates], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            embeds = clip.get_text_features(**tokens).pooler_output
        mean = torch.nn.functional.normalize(embeds, dim=-1).mean(0)
        expected = logit_scale_of(clip) * mean / mean.norm()
        torch.testing.assert_close(weights[row], expected.detach(), rtol=0, atol=1e-10)


def test_the_counts_of_processes_add_up(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(12, 3, generator=generator), torch.randint(3, (12,), generator=generator)
    groups = ["a", "b"] * 6
    parts = [counted(logits[rows], labels[rows], groups[rows]) for rows in (slice(5), slice(5, None))]
    monkeypatch.setattr("starft_hf.evaluation.counts.world_size", lambda: 2)

    def gather(everyone, own):
        everyone[:] = [vars(part) for part in parts]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    whole, together = counted(logits, labels, groups).result(), parts[0].gathered().result()
    assert together.macro_f1 == pytest.approx(whole.macro_f1)
    assert together.group_accuracies == whole.group_accuracies
    assert together.loss == pytest.approx(whole.loss)


def test_nan_predicts_nothing():
    logits = torch.tensor([[float("nan"), 1.0], [2.0, 1.0]])
    result = counted(logits, torch.tensor([0, 0]), ["a", "b"]).result()
    assert result.group_accuracies == {"a": 0.0, "b": 1.0}
    assert result.macro_f1 == pytest.approx(2 / 3)
