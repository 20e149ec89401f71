"""Macro F1, as a metric of the `evaluate` library."""

from typing import Any

import datasets

from starft_hf.evaluation.metrics import base, functions


class MacroF1(base.ArrayMetric):
    """The plain mean over classes of F1, the harmonic mean of precision and recall.

    Args of `compute`, `add_batch` and, in the singular, `add`:

    - `predictions`: predicted classes, integers from 0.
    - `references`: true classes, integers from 0.

    Further args of `compute`:

    - `num_classes`: average over this many classes, where one that is neither true nor predicted anywhere has F1 0.
      None, the default: over the classes that are true or predicted somewhere.

    Returns:
        macro_f1: from 0 to 1.

    Examples:
        >>> from starft_hf.evaluation.metrics import MacroF1
        >>> columns = {"predictions": [0, 0, 1, 1], "references": [0, 1, 1, 1]}
        >>> round(MacroF1().compute(**columns)["macro_f1"], 4)
        0.7333
        >>> round(MacroF1().compute(**columns, num_classes=4)["macro_f1"], 4)
        0.3667
    """

    source = """@misc{opitz2019macro,
  title = {Macro {F1} and Macro {F1}},
  author = {Opitz, Juri and Burst, Sebastian},
  year = {2019},
  eprint = {1911.03347},
  archivePrefix = {arXiv},
  url = {https://arxiv.org/abs/1911.03347}
}"""

    def _columns(self) -> datasets.Features:
        return datasets.Features({name: datasets.Value("int64") for name in ("predictions", "references")})

    def _compute(self, **inputs: Any) -> dict[str, Any]:
        return {"macro_f1": functions.macro_f1(**inputs)}
