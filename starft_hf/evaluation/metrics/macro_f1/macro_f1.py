"""Macro F1, as a metric of the `evaluate` library."""

from starft_hf.evaluation.metrics import base


class MacroF1(base.ArrayMetric):
    """The plain mean over classes of F1, the harmonic mean of precision and recall.

    Args of `compute`; `add_batch` has the first two, and `add` has `prediction` and `reference`:

    - `predictions`: predicted classes, integers from 0.
    - `references`: true classes, integers from 0.
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
