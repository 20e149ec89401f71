import pytest
from datasets import Value

from starft_hf.evaluation import evaluate_zero_shot
from tests.conftest import CLASS_NAMES


FINE = ["barn owl", "snowy owl", "truck", "violin", "fern"]
MAPPING = [(0, 1), (2,), (3,), (4,)]


def test_labels_keep_the_names_the_data_set_gives_them(clip, processor, dataset):
    settings = {"class_names": FINE, "class_mapping": MAPPING, "progress": False}
    result = evaluate_zero_shot(clip, processor, dataset, **settings)
    assert sorted(result.group_accuracies) == sorted(CLASS_NAMES)
    unnamed = evaluate_zero_shot(clip, processor, dataset.cast_column("label", Value("int64")), **settings)
    assert "barn owl" in unnamed.group_accuracies
    assert unnamed.loss == result.loss


def test_a_mapping_of_other_labels_is_an_error(clip, processor, dataset):
    with pytest.raises(ValueError, match="class_mapping is for 3 labels, but column 'label' has 4 classes"):
        evaluate_zero_shot(clip, processor, dataset, class_names=FINE, class_mapping=MAPPING[:3])


def test_training_shares_weight_the_groups(clip, processor, dataset):
    shares = {"left": 0.9, "right": 0.1}
    result = evaluate_zero_shot(clip, processor, dataset, group_column="group", training_shares=shares, progress=False)
    expected = sum(share * result.group_accuracies[group] for group, share in shares.items())
    assert result.group_adjusted_accuracy == pytest.approx(expected)
