"""Top-k accuracy, as a metric of the `evaluate` library."""

import datasets

from starft_hf.evaluation.metrics import base


class TopKAccuracy(base.ArrayMetric):
    """The share of rows whose true class is among the k of highest score.

    Of equal scores the class of lower index comes first, as with argmax.

    Args of `compute`; `add_batch` has the first two, and `add` has `scores` and `reference`:

    - `scores`: logits, probabilities or other scores, one per class in every row.
    - `references`: true classes, integers from 0.
    - `k`: from 1 to the number of classes; 5 by default.

    Returns:
        top_k_accuracy: from 0 to 1.

    Examples:
        >>> from starft_hf.evaluation.metrics import TopKAccuracy
        >>> TopKAccuracy().compute(scores=[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], references=[1, 0], k=2)
        {'top_k_accuracy': 0.5}
    """

    columns = datasets.Features(
        {"scores": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
    )
