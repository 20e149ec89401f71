"""Accuracy in groups, as a metric of the `evaluate` library."""

import datasets

from starft_hf.evaluation.metrics import base


class GroupAccuracy(base.ArrayMetric):
    """Accuracy per group, in the worst group, on average, and adjusted to the groups' shares of the training set.

    Args of `compute`; `add_batch` has the first three, and `add` has `prediction`, `reference` and `groups`:

    - `predictions`: predicted classes, integers from 0.
    - `references`: true classes, integers from 0.
    - `groups`: the group of every row; all strings or all integers.
    - `training_shares`: share (or count) of every group in the training set, by group, for the adjusted accuracy. It
      names every group that has rows, and every group to which it gives a share has rows. None skips it.
    - `groups_expected`: all groups, each of which must have rows. None: those that occur.

    Returns:
        accuracy: over all rows.
        worst_group_accuracy: in the group where it is lowest.
        worst_group: that group.
        group_accuracies: by group.
        group_sizes: rows, by group.
        group_adjusted_accuracy: average of the groups' accuracies weighted by `training_shares`, if they are given.

    Examples:
        >>> from starft_hf.evaluation.metrics import GroupAccuracy
        >>> columns = {"predictions": [0, 1, 1, 1], "references": [0, 1, 0, 1], "groups": ["a", "a", "b", "b"]}
        >>> results = GroupAccuracy().compute(**columns, training_shares={"a": 0.75, "b": 0.25})
        >>> results["accuracy"], results["worst_group_accuracy"], results["group_adjusted_accuracy"]
        (0.75, 0.5, 0.875)
        >>> results["group_accuracies"]
        {'a': 1.0, 'b': 0.5}
    """

    # Strings first: a string of digits would pass for an integer.
    columns = [datasets.Features({**base.CLASSES, "groups": datasets.Value(kind)}) for kind in ("string", "int64")]
