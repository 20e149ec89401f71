"""Reports on robustness: tables and plots of one or more runs, as JSON, Markdown and one HTML page."""

from starft_hf.evaluation.results import CurvePoint
from starft_hf.report.data import Run, TrainingPoint
from starft_hf.report.report import RobustnessReport
from starft_hf.report.rows import Row, Summary


__all__ = ["CurvePoint", "RobustnessReport", "Row", "Run", "Summary", "TrainingPoint"]
