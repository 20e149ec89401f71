"""Top-k accuracy, as a metric of the `evaluate` library."""

from typing import Any

import datasets

from starft_hf.evaluation.metrics import base, functions


class TopKAccuracy(base.ArrayMetric):
    """The share of rows whose true class is among the k of highest score.

    Of equal scores the class of lower index comes first, as with argmax.

    Args of `compute`, `add_batch` and, with `reference` in the singular, `add`:

    - `scores`: logits, probabilities or other scores, one per class in every row.
    - `references`: true classes, integers from 0.

    Further args of `compute`:

    - `k`: from 1 to the number of classes; 5 by default.

    Returns:
        top_k_accuracy: from 0 to 1.

    Examples:
        >>> from starft_hf.evaluation.metrics import TopKAccuracy
        >>> TopKAccuracy().compute(scores=[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], references=[1, 0], k=2)
        {'top_k_accuracy': 0.5}
    """

    source = """@article{russakovsky2015imagenet,
  title = {{ImageNet} Large Scale Visual Recognition Challenge},
  author = {Russakovsky, Olga and Deng, Jia and Su, Hao and Krause, Jonathan and Satheesh, Sanjeev and Ma, Sean and
            Huang, Zhiheng and Karpathy, Andrej and Khosla, Aditya and Bernstein, Michael and Berg, Alexander C. and
            Fei-Fei, Li},
  journal = {International Journal of Computer Vision},
  volume = {115},
  number = {3},
  pages = {211--252},
  year = {2015},
  url = {https://arxiv.org/abs/1409.0575}
}"""

    def _columns(self) -> datasets.Features:
        return datasets.Features(
            {"scores": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
        )

    def _compute(self, **inputs: Any) -> dict[str, Any]:
        return {"top_k_accuracy": functions.top_k_accuracy(**inputs)}
