"""Files of ONNX: what is put after a tower, what is left out of its graph, and weights beside it if it is large."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


# A file of protocol buffers cannot have 2 GiB; what is not a weight takes little.
MOST_BYTES = 2**31 - 2**27
_SMALLEST_EXTERNAL = 1024
# What exporters note in a graph of the code it was made from: paths of this machine among it.
_NOTES = ("doc_string", "metadata_props")

Floats = NDArray[np.float32]


def without_notes(message: Any) -> Any:
    """A message of protocol buffers, changed in place, without notes in it or in any of its parts."""
    from onnx import TensorProto

    for name in _NOTES:
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    if isinstance(message, TensorProto):
        return message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if hasattr(value, "__len__") else [value]:
                without_notes(part)
    return message


def normalize(model: Any, output: str) -> None:
    """Let a graph whose output is embeddings return unit rows, named `output`; changed in place."""
    from onnx import helper

    graph = model.graph
    (raw,) = graph.output
    graph.node.append(helper.make_node("LpNormalization", [raw.name], [output], name="normalize", axis=-1, p=2))
    width = raw.type.tensor_type.shape.dim[1].dim_value
    _set_output(graph, output, width)


def classify(
    model: Any, embeds: str, probabilities: str, weight: Floats, bias: Floats, *, multi_label: bool = False
) -> None:
    """Let a graph whose output is unit rows `embeds` return class probabilities instead; changed in place.

    Args:
        model: the graph.
        embeds: the name of its output.
        probabilities: the name of what it returns then.
        weight: of the logits, `(classes, D)`, with the temperature in it.
        bias: of the logits, `(classes,)`.
        multi_label: whether probabilities are of every class by itself, rather than of one of them.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    for name, values in (("class_weight", weight), ("class_bias", bias)):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
    graph.node.append(
        helper.make_node("Gemm", [embeds, "class_weight", "class_bias"], ["logits"], name="classify", transB=1)
    )
    if multi_label:
        graph.node.append(helper.make_node("Sigmoid", ["logits"], [probabilities], name="sigmoid"))
    else:
        graph.node.append(helper.make_node("Softmax", ["logits"], [probabilities], name="softmax", axis=-1))
    _set_output(graph, probabilities, len(weight))


def _set_output(graph: Any, name: str, width: int) -> None:
    from onnx import TensorProto, helper

    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]))


def save(model: Any, path: Path) -> None:
    """Write a graph to `path`, with its weights in `path` and ".data" if one file cannot hold both."""
    import onnx
    from onnx import helper

    model.producer_name, model.producer_version = "starft_hf", ""
    # A graph that is too large cannot say how large it is.
    weights = model.graph.initializer
    sizes = (math.prod(part.dims) * helper.tensor_dtype_to_np_dtype(part.data_type).itemsize for part in weights)
    large = sum(sizes) > MOST_BYTES
    onnx.save_model(
        model,
        path,
        save_as_external_data=large,
        location=f"{path.name}.data",
        size_threshold=_SMALLEST_EXTERNAL,
    )
    if large:
        # Writing has taken them out of the graph.
        onnx.load_external_data_for_model(model, str(path.parent))
