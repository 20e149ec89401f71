import importlib.util
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from starft_hf.data.captions import readable
from starft_hf.data.imagenet import _open_clip_metadata
from starft_hf.evaluation.catalog import (
    benchmark_names,
    catalog_table,
    imagenet_class_names,
    imagenet_templates,
    load_benchmark,
    published_accuracies,
    published_figures,
    registry,
)
from starft_hf.evaluation.catalog import entry as entry_module
from starft_hf.evaluation.catalog.columns import as_class_labels
from tests.support.benchmarks import (
    IMAGENET_A,
    IMAGENET_R,
    REGIONS,
    encoded,
    labelled_shards,
    needs_open_clip,
    random_images,
)


def test_loading_takes_the_split_alone_and_counts_its_rows(monkeypatch, tmp_path):
    dataset, calls = labelled_shards(tmp_path, [0, 3], "jpg").add_column("region", ["Asia", "Asia"]), []

    def from_hub(*args, **kwargs):
        calls.append((args, kwargs))
        return dataset

    monkeypatch.setattr(entry_module, "load_dataset", from_hub)
    with pytest.warns(UserWarning, match="the Hub has 2 rows for 'fmow', whose test split has 22108"):
        prepared = load_benchmark("fmow").load(tmp_path)
    assert prepared["label"][:] == [0, 3]
    files = {"data_files": {"test": "test/*.tar"}, "split": "test", "cache_dir": str(tmp_path)}
    assert calls == [(("djghosh/wds_wilds-fmow_test", None), files)]


def test_missing_classes_are_an_error_before_anything_is_downloaded(monkeypatch):
    monkeypatch.setattr(entry_module, "load_dataset", lambda *args, **kwargs: pytest.fail("downloads"))
    with pytest.raises(ValueError, match="does not include the mapping"):
        load_benchmark("objectnet").load()


def test_the_order_of_class_names_is_that_of_the_benchmark():
    features = Features(image=Image(), label=ClassLabel(names=["Waterbird", "Landbird"]), place=Value("string"))
    rows = {"image": random_images(2), "label": [0, 1], "place": ["water", "Land"]}
    prepared = load_benchmark("waterbirds").prepare(Dataset.from_dict(rows, features))
    assert prepared["label"][:] == [1, 0]
    assert prepared["place"][:] == ["water", "land"]


@pytest.mark.parametrize(
    ("label", "values", "message"),
    [
        (ClassLabel(names=["owl", "duck"]), [0, 1], "has the classes owl, duck, not landbird, waterbird"),
        (Value("int64"), [0, 2], "column 'label' has a row with 2, but there are 2 classes"),
        (Value("float64"), [0, 0.5], "column 'label' has a row with 0.5"),
        (Value("string"), ["landbird", "waterbirds"], "Did you mean 'waterbird'"),
        (Value("int64"), [0, None], "column 'label' has a row with None"),
        (Value("string"), ["landbird", None], "column 'label' has a row with None"),
        (ClassLabel(names=["waterbird", "landbird"]), [0, -1], "column 'label' has a row with -1"),
        (ClassLabel(names=["waterbird", "landbird"]), [0, None], "column 'label' has a row with None"),
    ],
)
def test_other_classes_are_an_error(label, values, message):
    features = Features(image=Image(), label=label, place=Value("int64"))
    dataset = Dataset.from_dict({"image": random_images(2), "label": values, "place": [0, 1]}, features)
    with pytest.raises(ValueError, match=message):
        load_benchmark("waterbirds").prepare(dataset)


@pytest.mark.parametrize("value", [-1, None])
def test_groups_without_a_name_are_an_error(value):
    places = ClassLabel(names=["land", "water"])
    features = Features(image=Image(), label=ClassLabel(names=["landbird", "waterbird"]), place=places)
    dataset = Dataset.from_dict({"image": random_images(2), "label": [0, 1], "place": [0, value]}, features)
    with pytest.raises(ValueError, match=f"column 'place' has a row with {value}"):
        load_benchmark("waterbirds").prepare(dataset)


def test_groups_that_are_still_indices_are_not_prepared(clip, processor):
    features = Features(image=Image(), label=ClassLabel(names=["landbird", "waterbird"]), place=Value("int64"))
    dataset = Dataset.from_dict({"image": random_images(2), "label": [0, 1], "place": [0, 1]}, features)
    with pytest.raises(ValueError, match="is not prepared: column 'place' does not hold the names of groups"):
        load_benchmark("waterbirds").evaluate(clip, processor, dataset)


def test_datasets_that_do_not_fit(clip, processor):
    entry = load_benchmark("waterbirds")
    raw = Dataset.from_dict({"image": random_images(1), "label": [0], "place": [0]})
    with pytest.raises(ValueError, match="is not prepared: its labels do not have the benchmark's names"):
        entry.evaluate(clip, processor, raw)
    with pytest.raises(ValueError, match="pass its split 'test'"):
        entry.prepare(DatasetDict(test=raw))
    with pytest.raises(ValueError, match=r"no column with the images: expected one of \['image'\]"):
        entry.prepare(raw.rename_column("image", "picture"))


def test_encoded_images_are_decoded(clip, processor):
    images = [{"bytes": encoded(image, "png"), "path": None} for image in random_images(2)]
    raw = Dataset.from_dict({"image": images, "label": [0, 1], "place": [0, 1]})
    prepared = load_benchmark("waterbirds").prepare(raw)
    np.testing.assert_array_equal(np.asarray(prepared[1]["image"]), np.asarray(random_images(2)[1]))


@needs_open_clip
def test_names_and_prompts_of_imagenet():
    names, templates = imagenet_class_names(), imagenet_templates()
    assert len(names) == 1000
    assert (names[0], names[999]) == ("tench", "toilet paper")
    assert len(set(templates)) == 80
    assert templates == tuple(prompt("{}") for prompt in _open_clip_metadata()["OPENAI_IMAGENET_TEMPLATES"])
    assert all(template.count("{}") == 1 for template in templates)
    assert load_benchmark("imagenet-a").prompts() == templates
    # Telling classes of the same name apart leaves the published prompts as they are.
    assert [readable(name) for name in load_benchmark("imagenet").class_space().names] == list(names)


def test_without_open_clip_the_error_says_what_to_install(monkeypatch):
    _open_clip_metadata.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'starft_hf\[catalog\]'"):
        load_benchmark("imagenet-r").class_space()


@pytest.mark.parametrize(("letter", "indices"), [("r", IMAGENET_R), ("a", IMAGENET_A)])
def test_subsets_are_those_that_timm_carries(letter, indices):
    spec = importlib.util.find_spec("timm")
    if spec is None:
        pytest.skip("needs timm")
    path = Path(spec.origin).parent / "data" / "_info" / f"imagenet_{letter}_indices.txt"
    assert [int(line) for line in path.read_text().split()] == list(indices)


def test_entries_can_be_found_and_are_complete():
    with pytest.raises(ValueError, match="Did you mean 'waterbirds'"):
        load_benchmark("waterbird")
    with pytest.raises(ValueError, match="unknown group column of 'fmow' 'regions'"):
        load_benchmark("fmow", group_names={"regions": REGIONS})
    for name in benchmark_names():
        entry = load_benchmark(name)
        assert entry.name == name
        assert entry.license_note
        assert entry.sources
        assert entry.checked is None
        line = next(line for line in catalog_table().splitlines() if line.startswith(f"| `{name}` "))
        assert all(f"`{source.hub_id}`" in line for source in entry.hub)
        assert line.endswith("| never |")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"classes": ["landbird"]}, ValueError, "'waterbirds' lists 1 distinct classes, but num_classes is 2"),
        ({"group_names": {"plaice": ["land", "water"]}}, ValueError, "unknown group column of 'waterbirds' 'plaice'"),
        ({"metric": "worst_group"}, ValueError, "unknown metric 'worst_group'"),
        ({"row": 5794}, TypeError, "'row'"),
    ],
)
def test_mistakes_in_the_data_file_are_errors(change, error, message):
    fields = registry._read("benchmarks.yaml")["waterbirds"]
    with pytest.raises(error, match=message):
        registry._entry("waterbirds", {**fields, **change})


def test_a_benchmark_without_its_group_column_is_an_error():
    raw = Dataset.from_dict({"image": random_images(1), "label": [0]}, Features(image=Image(), label=Value("int64")))
    with pytest.raises(ValueError, match="no column with the groups"):
        load_benchmark("waterbirds").prepare(raw)


def test_published_figures():
    assert published_accuracies("imagenet-r")["CaRot"] == 77.7
    assert published_accuracies("imagenet")["zero-shot"] == 68.3
    with pytest.raises(ValueError, match="unknown benchmark with published figures 'objectnet'"):
        published_accuracies("objectnet")


@pytest.mark.parametrize(
    ("benchmark", "method", "average", "robust"),
    [
        ("imagenet", "TRACER", 82.76, 64.07),
        ("imagenet", "FLYP", 82.72, 59.45),
        ("imagenet", "ReCalCon", 83.3, 62.2),
        ("imagenet", "Model Stock", 84.07, 62.40),
        ("imagenet", "R-Adapter", 82.0, 64.8),
        ("waterbirds", "DFR", None, 92.9),
        ("waterbirds", "AFR", None, 90.4),
        ("waterbirds", "PRISM-mini", 92.6, 69.5),
        ("waterbirds", "PRISM", 93.6, 84.2),
    ],
)
def test_figures_of_other_harnesses_have_their_sources(benchmark, method, average, robust):
    (found,) = [figure for figure in published_figures(benchmark) if figure.method == method]
    assert (found.average, found.robust) == (average, robust)
    assert found.source
    # Means with and without ObjectNet are not comparable.
    assert (found.shifts is None) == (benchmark == "waterbirds")


def test_figures_that_were_not_published_are_refused():
    with pytest.raises(ValueError, match="unknown benchmark with published figures 'pacs'"):
        published_figures("pacs")


def test_labels_of_selected_rows_leave_a_transform_as_it_is():
    images = [PILImage.new("RGB", (8, 8)) for _ in range(6)]
    rows = Dataset.from_dict(
        {"image": images, "label": [0, 1, 0, 1, 0, 1]}, Features(image=Image(), label=Value("int64"))
    )
    halved = rows.with_transform(lambda batch: {**batch, "image": [image.resize((4, 4)) for image in batch["image"]]})
    named = as_class_labels(halved.select([1, 2, 5]), "label", ["owl", "fern"])
    # Rewriting the rows through the transform would apply it once more.
    assert named[0]["image"].size == (4, 4)
    assert named.with_format(None)[0]["image"].size == (8, 8)
    assert named.with_format(None)["label"][:] == [1, 0, 1]
