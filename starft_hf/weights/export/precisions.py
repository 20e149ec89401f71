"""Weights of ONNX graphs in half precision and in integers."""

from pathlib import Path
from typing import Any

from starft_hf.weights.export.packages import quiet


FP32, FP16, INT8 = "fp32", "fp16", "int8"
DTYPES = (FP32, FP16, INT8)

# The distance of unit rows from those of PyTorch, of images of noise, above which something is wrong.
MOST_DISTANCE = {FP32: 1e-4, FP16: 0.02, INT8: 0.5}


def file_name(part: str, dtype: str) -> str:
    """The file of a part in a dtype: `classifier.onnx` in float32, `classifier.int8.onnx` in integers."""
    return f"{part}.onnx" if dtype == FP32 else f"{part}.{dtype}.onnx"


def load_in(path: Path, dtype: str) -> Any:
    """The graph in a file, in float32, with its weights in `dtype`; its inputs and outputs stay float32.

    Halves are those of all weights and values between them. Integers of 8 bits are those of matrix products, a scale
    for each of their columns, whose other factor is quantized as it comes (dynamic quantization); other weights, as
    of convolutions and of token embeddings, stay float32.
    """
    import onnx

    if dtype == FP32:
        return onnx.load(path)
    if dtype == FP16:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        # The exporter has noted all shapes, and they cannot be inferred in a graph of more than 2 GB.
        return convert_float_to_float16(onnx.load(path), keep_io_types=True, disable_shape_infer=True)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    bare, quantized = (path.with_name(f"{what}-{path.name}") for what in ("bare", "quantized"))
    # Shapes are inferred again: the quantizer may transpose weights, and keeps the shapes that are noted.
    model = onnx.load(path, load_external_data=False)
    model.graph.ClearField("value_info")
    onnx.save(model, bare)
    with quiet():
        # Products of a signed and an unsigned integer overflow on processors without VNNI.
        quantize_dynamic(
            bare,
            quantized,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QUInt8,
            use_external_data_format=True,
        )
    return onnx.load(quantized)
