"""The expected calibration error, as a metric of the `evaluate` library."""

import datasets

from starft_hf.evaluation.metrics import base


class ExpectedCalibrationError(base.ArrayMetric):
    """Distance of accuracy and confidence over bins of equal width, averaged by their rows, over the whole set.

    Args of `compute`; `add_batch` has the first three, and `add` has `confidences`, `prediction` and `reference`:

    - `confidences`: probability of every predicted class, from 0 to 1.
    - `predictions`: predicted classes, integers from 0.
    - `references`: true classes, integers from 0.
    - `num_bins`: bins from confidence 0 to 1, each of which holds its upper edge; 15 by default.

    Returns:
        expected_calibration_error: from 0 to 1.

    Examples:
        >>> from starft_hf.evaluation.metrics import ExpectedCalibrationError
        >>> columns = {"confidences": [0.75, 0.75, 1.0], "predictions": [0, 1, 1], "references": [0, 0, 1]}
        >>> results = ExpectedCalibrationError().compute(**columns, num_bins=4)
        >>> round(results["expected_calibration_error"], 4)
        0.1667
    """

    columns = datasets.Features({"confidences": datasets.Value("float64"), **base.CLASSES})
