"""Export: a model as files of ONNX, for programs without PyTorch."""

from starft_hf.weights.export.exporting import ExportResult, export


__all__ = ["ExportResult", "export"]
