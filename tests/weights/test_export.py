"""What is exported computes what the model does, and says how to use it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from starft_hf import export, load
from starft_hf.cli import main
from starft_hf.data.layouts.results import result_in
from starft_hf.hub.classifier import Classifier
from starft_hf.models.adapters import with_adapter
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.heads import head_from_weights, save_head
from starft_hf.weights.export import exporting, files, graphs, packages
from starft_hf.weights.export.precisions import DTYPES
from tests.support.exports import PIXEL_TOLERANCE, TensorProto, graph_of, noisy_images, pixel_values, run
from tests.support.families import FAMILIES, family, towers
from tests.support.tiny import CLASS_NAMES, make_dataset


try:
    packages.check_packages()
except ImportError as error:
    # Of the lowest versions, PyTorch is too old.
    pytest.skip(str(error), allow_module_level=True)

ROOT = Path(__file__).parents[2]
PROMPTS = ["a photo of a {}.", "the {} at noon"]
FILES = ["classifier", "image_encoder", "text_encoder"]


def save_adapter(folder):
    """An adapter in both towers, with its base model in its folder; the base gives other embeddings."""
    model, processor = family("clip", max_length=96)
    # A layer fewer is traced in less time.
    model.config.text_config.num_hidden_layers = model.config.vision_config.num_hidden_layers = 1
    model = CLIPModel(model.config).eval()
    for part in (model, processor):
        part.save_pretrained(folder / "base")
    adapted = with_adapter(model, "lora")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    adapted.peft_config["default"].base_model_name_or_path = "base"
    adapted.save_pretrained(folder)
    return folder


def tensors_of(classifier, images):
    return classifier.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]


def probabilities(classifier, images):
    """Of PyTorch, of images as the image processor itself prepares them."""
    with torch.no_grad():
        embeds = classifier.encoder.encode(classifier.model, images={"pixel_values": tensors_of(classifier, images)})
        return classifier._logits(embeds).softmax(-1).numpy()


def check(folder, classifier, **tolerance):
    """All files against PyTorch, for one input and for five."""
    tolerance = tolerance or {"rtol": 0, "atol": 1e-4}
    encoder = DualEncoder.of(classifier.model, classifier.processor, packed=False)
    for number in (1, 5):
        images = noisy_images(number)
        pixels = tensors_of(classifier, images).numpy()
        found = run(folder / "classifier.onnx", pixel_values=pixels)
        np.testing.assert_allclose(found, probabilities(classifier, images), **tolerance)
        with torch.no_grad():
            embeds = encoder.encode(classifier.model, images={"pixel_values": torch.from_numpy(pixels)})
            found = run(folder / "image_encoder.onnx", pixel_values=pixels)
            np.testing.assert_allclose(found, embeds.numpy(), **tolerance)
            texts = ["a dark owl", "ferns", "a photo of a truck on the road at noon.", "x", "it is"][:number]
            inputs = {name: encoder.encode_texts(texts)[name] for name in inputs_of(folder / "text_encoder.onnx")}
            embeds = encoder.encode(classifier.model, texts=texts)
            found = run(folder / "text_encoder.onnx", **inputs)
            np.testing.assert_allclose(found, embeds.numpy(), **tolerance)


def inputs_of(path):
    return [value.name for value in graph_of(path).input]


class Exported:
    """An export of everything, and the graphs that PyTorch traced for it, which take most of the time."""

    def __init__(self, source, traced, folder):
        self.source, self.traced, self.folder = source, traced, folder
        trace = graphs.trace

        def trace_and_keep(model, tower, path):
            trace(model, tower, path)
            for written in path.parent.glob(f"{path.name}*"):
                shutil.copy(written, traced)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graphs, "trace", trace_and_keep)
            settings = {"dtype": DTYPES, "class_names": CLASS_NAMES, "templates": PROMPTS, "progress": False}
            self.result = export(source, folder, **settings)

    def trace(self, model, tower, path):
        """In place of the exporter, for models with the same towers."""
        for written in self.traced.glob(f"{tower.file}*"):
            shutil.copy(written, path.parent)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    (folder / "traced").mkdir()
    return Exported(save_adapter(folder / "adapter"), folder / "traced", folder / "out")


@pytest.fixture
def traced(exported, monkeypatch):
    monkeypatch.setattr(graphs, "trace", exported.trace)
    return exported


def test_an_adapter_is_merged_and_computes_what_it_did(exported):
    classifier = load(exported.source).with_classes(CLASS_NAMES, PROMPTS)
    check(exported.folder, classifier)
    # The adapter matters.
    base = load(exported.source / "base").with_classes(CLASS_NAMES, PROMPTS)
    images = noisy_images()
    assert np.abs(probabilities(base, images) - probabilities(classifier, images)).max() > 0.01


def test_what_is_written(exported):
    names = [f"{part}{ending}.onnx" for part in FILES for ending in ("", ".fp16", ".int8")]
    assert sorted(exported.result.files) == sorted([*names, "labels.json", "preprocessing.json"])
    assert result_in(exported.result.files) is not None
    assert {path.name: path.stat().st_size for path in exported.folder.iterdir()} == exported.result.files
    assert json.loads((exported.folder / "labels.json").read_text()) == CLASS_NAMES
    differences = exported.result.max_difference
    assert sorted(differences) == sorted(names)
    assert all(differences[f"{part}.onnx"] < 1e-4 for part in FILES)
    for part in FILES:
        graph = graph_of(exported.folder / f"{part}.int8.onnx")
        assert {"DynamicQuantizeLinear", "MatMulInteger"} <= {node.op_type for node in graph.node}
        half = graph_of(exported.folder / f"{part}.fp16.onnx")
        types = {value.data_type for value in half.initializer if value.dims and value.name[:6] != "class_"}
        assert TensorProto.FLOAT16 in types
        assert TensorProto.FLOAT not in types
        for content in (graph, half):
            values = [*content.input, *content.output]
            floats = {value.name: value.type.tensor_type.elem_type for value in values}
            assert floats.pop("input_ids", 7) == floats.pop("attention_mask", 7) == TensorProto.INT64
            assert set(floats.values()) == {TensorProto.FLOAT}
            assert all(value.type.tensor_type.shape.dim[0].dim_param == "batch" for value in values)


def test_less_precise_weights_classify_nearly_the_same(exported):
    images = pixel_values(exported.folder, noisy_images())
    exact = run(exported.folder / "classifier.onnx", pixel_values=images)
    for dtype, most in (("fp16", 0.005), ("int8", 0.1)):
        found = run(exported.folder / f"classifier.{dtype}.onnx", pixel_values=images)
        assert 0 < np.abs(found - exact).max() < most


def test_nothing_names_a_place_on_this_machine(exported):
    """Exporters note where the code of every operation is."""
    for path in exported.folder.iterdir():
        content = path.read_bytes()
        for place in (
            str(ROOT),
            str(Path(torch.__file__).parent.parent),
            str(exported.folder.parent),
            "site-packages",
        ):
            assert place.encode() not in content, path.name
        assert not re.search(rb"\.py\b", content), path.name


def test_preprocessing_by_pillow_and_numpy_alone(exported):
    classifier = load(exported.source).with_classes(CLASS_NAMES, PROMPTS)
    images = noisy_images()
    pixels = pixel_values(exported.folder, images)
    np.testing.assert_allclose(pixels, tensors_of(classifier, images).numpy(), atol=PIXEL_TOLERANCE)
    rows = list(make_dataset(12)["image"])
    found = run(exported.folder / "classifier.onnx", pixel_values=pixel_values(exported.folder, rows))
    assert [CLASS_NAMES[place] for place in found.argmax(-1)] == [row.label for row in classifier(rows)]


def test_a_trained_head_with_its_bias_and_a_selection_of_its_classes(traced, tmp_path):
    source = shutil.copytree(traced.source, tmp_path / "model")
    torch.manual_seed(3)
    head = head_from_weights(torch.randn(4, 24) * 5, torch.randn(4))
    save_head(head.state_dict(), CLASS_NAMES, source)
    classifier = load(source)
    images = noisy_images()
    expected = probabilities(classifier, images)
    assert exporting.export(source, tmp_path / "all", progress=False).labels == tuple(CLASS_NAMES)
    found = run(tmp_path / "all" / "classifier.onnx", pixel_values=tensors_of(classifier, images).numpy())
    np.testing.assert_allclose(found, expected, atol=1e-4)
    export(classifier, tmp_path / "some", class_names=["fern", "owl"], progress=False)
    found = run(tmp_path / "some" / "classifier.onnx", pixel_values=tensors_of(classifier, images).numpy())
    chosen = expected[:, [CLASS_NAMES.index("fern"), CLASS_NAMES.index("owl")]]
    np.testing.assert_allclose(found, chosen / chosen.sum(-1, keepdims=True), atol=1e-4)
    for settings, match in (
        ({"templates": "a {}"}, "templates=.* has no effect: .* classifies with a trained head"),
        ({"class_names": ["owl", "cat"]}, "unknown class 'cat'. Known: 'owl', 'truck', 'violin', 'fern'"),
    ):
        with pytest.raises(ValueError, match=match):
            export(source, tmp_path / "refused", **settings)
    assert not (tmp_path / "refused").exists()


def test_images_of_several_classes(traced, tmp_path):
    """Probabilities are then of every class by itself."""
    classifier = load(traced.source).with_classes(CLASS_NAMES, PROMPTS)
    torch.manual_seed(3)
    classifier.head = head_from_weights(torch.randn(4, 24), torch.randn(4))
    classifier.multi_label = True
    export(classifier, tmp_path / "out", progress=False)
    pixels = tensors_of(classifier, noisy_images())
    with torch.no_grad():
        expected = classifier._logits(classifier.encoder.encode(classifier.model, images={"pixel_values": pixels}))
    found = run(tmp_path / "out" / "classifier.onnx", pixel_values=pixels.numpy())
    np.testing.assert_allclose(found, expected.sigmoid().numpy(), atol=1e-4)


def test_a_model_in_memory_of_another_dtype_is_left_as_it_is(traced, tmp_path):
    classifier = load(traced.source)
    classifier = Classifier(classifier.model.merge_and_unload().double(), classifier.processor, CLASS_NAMES, PROMPTS)
    export(classifier, tmp_path / "out", progress=False)
    assert next(classifier.model.parameters()).dtype == torch.float64
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*(f"{part}.onnx" for part in FILES), "labels.json", "preprocessing.json"}


def test_weights_beside_the_graph_where_one_file_cannot_hold_both(traced, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 1000)
    settings = {"dtype": DTYPES, "class_names": CLASS_NAMES, "templates": PROMPTS, "progress": False}
    result = export(traced.source, tmp_path / "out", **settings)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    images = pixel_values(traced.folder, noisy_images())
    for ending in ("", ".fp16", ".int8"):
        assert f"classifier{ending}.onnx.data" in result.files
        modes = {path.stat().st_mode for path in (tmp_path / "moved").glob(f"classifier{ending}.onnx*")}
        assert len(modes) == 1
        found = run(tmp_path / "moved" / f"classifier{ending}.onnx", pixel_values=images)
        np.testing.assert_allclose(
            found, run(traced.folder / f"classifier{ending}.onnx", pixel_values=images), atol=1e-6
        )
    (tmp_path / "moved" / "model.onnx").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"model\.onnx"):
        export(traced.source, tmp_path / "moved", overwrite=True, **settings)


@pytest.mark.parametrize("broken", ["classify", "normalize"])
def test_what_computes_something_else_is_not_left(broken, traced, tmp_path, monkeypatch):
    """An earlier export stays."""
    settings = {"class_names": CLASS_NAMES, "templates": PROMPTS, "progress": False}
    earlier = tmp_path / "out"
    shutil.copytree(traced.folder, earlier)
    before = {path.name: path.read_bytes() for path in earlier.iterdir()}
    original = getattr(files, broken)

    def wrong(model, *arguments, **settings):
        original(model, *arguments, **settings)
        for node in model.graph.node:
            if node.name == "softmax":
                node.attribute[0].i = 0
            elif node.name == "normalize":
                next(part for part in node.attribute if part.name == "p").i = 1

    monkeypatch.setattr(files, broken, wrong)
    with pytest.raises(ValueError, match=r"was written, run and removed: its .* differ from those of PyTorch by"):
        export(traced.source, earlier, overwrite=True, **settings)
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()
    monkeypatch.setattr(graphs, "trace", traced.trace)
    export(traced.source, earlier, overwrite=True, **settings)
    assert sorted(path.name for path in earlier.iterdir()) == sorted(
        [*(f"{part}.onnx" for part in FILES), "labels.json", "preprocessing.json"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_command(traced, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["export", str(traced.source), "--output_dir", "out", "--class_names", *CLASS_NAMES]
    assert main([*command, "--templates", *PROMPTS, "--dtype", "fp16", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    content = json.loads(line)
    assert (content["output_dir"], content["labels"]) == ("out", 4)
    assert set(content["max_difference"]) == {f"{part}.fp16.onnx" for part in FILES}
    assert set(content["files"]) == {*content["max_difference"], "labels.json", "preprocessing.json"}
    assert main(command) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert "classifier.onnx: 0." in capsys.readouterr().out
    assert main([*command[:3], "other"]) == 2
    assert "pass --class_names ..." in capsys.readouterr().err


def test_the_guide_predicts_what_the_model_does(exported, tmp_path, monkeypatch, capsys):
    """With Pillow, NumPy and ONNX Runtime alone."""
    (code,) = re.findall(r"```python\n(import json.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    imported = {line.split()[1] for line in code.splitlines() if line.startswith(("import", "from"))}
    assert imported == {"json", "numpy", "onnxruntime", "PIL"}
    assert len([line for line in code.splitlines() if line]) <= 20
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported.folder, "exported")
    classifier = load(exported.source).with_classes(CLASS_NAMES, PROMPTS)
    for image in noisy_images():
        image.save("photo.png")
        exec(compile(code.replace("photos/test/owl/0.png", "photo.png"), "export.md", "exec"), {})
        expected = probabilities(classifier, [image])[0]
        label, probability = capsys.readouterr().out.split()
        assert label == CLASS_NAMES[expected.argmax()]
        # Printed with three digits.
        assert float(probability) == pytest.approx(expected.max(), abs=5.1e-4 + PIXEL_TOLERANCE / 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "siglip2"])
def test_every_family_computes_what_it_did(name, tmp_path):
    model, processor = family(name)
    classifier = Classifier(model, processor, CLASS_NAMES, PROMPTS)
    dtypes = ["fp32", "fp16"] + (["int8"] if name != "align" else [])
    export(classifier, tmp_path / "out", dtype=dtypes, progress=False)
    check(tmp_path / "out", classifier)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vision", "text"),
    [("swin", "distilbert"), ("convnext", "roberta"), ("efficientnet", "bert"), ("resnet", "bert")],
)
def test_towers_of_any_type_compute_what_they_did(vision, text, tmp_path):
    """Two of them pool what they are not made to pool, by a hook."""
    classifier = Classifier(*towers(vision, text), CLASS_NAMES, PROMPTS)
    export(classifier, tmp_path / "out", dtype=["fp32", "fp16"], progress=False)
    check(tmp_path / "out", classifier)
