"""`tune`: chooses the weight of the regularizer, the method and the WiSE-FT alpha on validation data."""

from starft_hf.training.tuning.result import TuningResult, TuningRow
from starft_hf.training.tuning.search import tune


__all__ = ["TuningResult", "TuningRow", "tune"]
